//! Integer expressions over names: `(heads + 2 * kv_heads) * head_dim`.

use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::error::{Error, Result};

/// Longest expression in bytes.
const MAX_LENGTH: usize = 256;
/// Deepest nesting of parentheses.
const MAX_DEPTH: usize = 16;

/// A parsed expression; `/` divides exactly or fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expr {
    Number(u64),
    Name(Box<str>),
    Binary(Operator, Box<[Expr; 2]>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Multiply,
    Divide,
}

impl Expr {
    /// Parses `text`; [`crate::error::Kind::Usage`] if it is no expression.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let fail = |what: &str| Error::usage(format!("{what} in the expression {text:?}"));
        if text.len() > MAX_LENGTH {
            return Err(fail("more than 256 bytes"));
        }
        let mut parser = Parser { rest: text, depth: 0 };
        let expr = parser.sum().map_err(fail)?;
        parser.skip_spaces();
        if parser.rest.is_empty() { Ok(expr) } else { Err(fail("unexpected text")) }
    }

    /// Value with names looked up in `lookup`; `None` if a name has none.
    /// Overflow and inexact division are [`crate::error::Kind::Invalid`].
    pub(crate) fn value(
        &self,
        lookup: &dyn Fn(&str) -> Result<Option<u64>>,
    ) -> Result<Option<u64>> {
        let (operator, sides) = match self {
            Self::Number(n) => return Ok(Some(*n)),
            Self::Name(name) => return lookup(name),
            Self::Binary(operator, sides) => (operator, sides),
        };
        let (Some(a), Some(b)) = (sides[0].value(lookup)?, sides[1].value(lookup)?) else {
            return Ok(None);
        };
        let (result, sign) = match operator {
            Operator::Add => (a.checked_add(b), '+'),
            Operator::Multiply => (a.checked_mul(b), '*'),
            Operator::Divide => (a.checked_div(b).filter(|q| q * b == a), '/'),
        };
        result
            .map(Some)
            .ok_or_else(|| Error::invalid(format!("{a} {sign} {b} has no whole 64-bit value")))
    }

    /// Calls `visit` with every name of the expression.
    pub(crate) fn names<'e>(&'e self, visit: &mut dyn FnMut(&'e str)) {
        match self {
            Self::Number(_) => {}
            Self::Name(name) => visit(name),
            Self::Binary(_, sides) => sides.iter().for_each(|side| side.names(visit)),
        }
    }
}

/// Whether `text` is a name that an expression can use.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

struct Parser<'t> {
    rest: &'t str,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn sum(&mut self) -> Result<Expr, &'static str> {
        let mut left = self.product()?;
        while self.take('+') {
            left = Expr::Binary(Operator::Add, Box::new([left, self.product()?]));
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<Expr, &'static str> {
        let mut left = self.atom()?;
        loop {
            let operator = if self.take('*') {
                Operator::Multiply
            } else if self.take('/') {
                Operator::Divide
            } else {
                return Ok(left);
            };
            left = Expr::Binary(operator, Box::new([left, self.atom()?]));
        }
    }

    fn atom(&mut self) -> Result<Expr, &'static str> {
        if self.take('(') {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err("parentheses nested too deeply");
            }
            let inner = self.sum()?;
            self.depth -= 1;
            return if self.take(')') { Ok(inner) } else { Err("missing ')'") };
        }
        let word = self.word();
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            word.parse().map(Expr::Number).map_err(|_| "a bad number")
        } else if is_name(word) {
            Ok(Expr::Name(word.into()))
        } else {
            Err("a name or number is missing")
        }
    }

    fn word(&mut self) -> &'t str {
        self.skip_spaces();
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn take(&mut self, sign: char) -> bool {
        self.skip_spaces();
        self.rest.strip_prefix(sign).inspect(|rest| self.rest = rest).is_some()
    }

    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start_matches(' ');
    }
}

impl<'de> Deserialize<'de> for Expr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct ExprVisitor;
        impl Visitor<'_> for ExprVisitor {
            type Value = Expr;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an expression or a whole number")
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> std::result::Result<Expr, E> {
                u64::try_from(n).map(Expr::Number).map_err(|_| E::custom("a negative number"))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Expr, E> {
                Expr::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(ExprVisitor)
    }
}
