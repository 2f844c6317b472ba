//! Tensor names with `{layer}` and `{expert}`, matched without regular expressions.

use std::fmt::{self, Display};

use serde::Deserialize;

use crate::error::{Error, Result};

/// Longest pattern in bytes.
const MAX_LENGTH: usize = 512;
const LAYER: &str = "{layer}";
const EXPERT: &str = "{expert}";

/// `prefix` `{layer}` `middle` `{expert}` `suffix`; a pattern without numbers is its prefix.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Pattern {
    Fixed(Box<str>),
    Layer([Box<str>; 2]),
    Expert([Box<str>; 3]),
}

impl TryFrom<String> for Pattern {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl Pattern {
    /// Parses a pattern. `{layer}` comes first, `{expert}` only after it, each at most once and
    /// as a whole dotted component, so that a name matches in at most one way.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let fail = |what: &str| Err(Error::usage(format!("{what} in the name pattern {text:?}")));
        if text.is_empty() || text.len() > MAX_LENGTH {
            return fail("no text, or more than 512 bytes,");
        }
        let components = text.split('.');
        let count = |word: &str| components.clone().filter(|c| *c == word).count();
        if components.clone().any(|c| c.contains(['{', '}']) && c != LAYER && c != EXPERT) {
            return fail("a brace that is not the whole of {layer} or {expert} between dots");
        }
        match (count(LAYER), count(EXPERT)) {
            (0, 0) => return Ok(Self::Fixed(text.into())),
            (1, 0 | 1) => {}
            _ => return fail("{layer} or {expert} twice, or {expert} without {layer},"),
        }
        let Some((prefix, rest)) = text.split_once(LAYER) else {
            return fail("no {layer}");
        };
        match rest.split_once(EXPERT) {
            None if prefix.contains(EXPERT) => fail("{expert} before {layer}"),
            None => Ok(Self::Layer([prefix.into(), rest.into()])),
            Some((middle, suffix)) => {
                Ok(Self::Expert([prefix.into(), middle.into(), suffix.into()]))
            }
        }
    }

    pub(crate) fn has_layer(&self) -> bool {
        !matches!(self, Self::Fixed(_))
    }

    pub(crate) fn has_expert(&self) -> bool {
        matches!(self, Self::Expert(_))
    }

    /// Layer and expert of `name`, or `None` if it does not match. Numbers have no leading zeros.
    pub(crate) fn matches(&self, name: &str) -> Option<(Option<u32>, Option<u32>)> {
        match self {
            Self::Fixed(text) => (**text == *name).then_some((None, None)),
            Self::Layer([prefix, suffix]) => {
                let layer = name.strip_suffix(&**suffix)?.strip_prefix(&**prefix)?;
                Some((Some(number(layer)?), None))
            }
            Self::Expert([prefix, middle, suffix]) => {
                let rest = name.strip_suffix(&**suffix)?.strip_prefix(&**prefix)?;
                let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
                let (layer, rest) = rest.split_at(digits);
                let expert = rest.strip_prefix(&**middle)?;
                Some((Some(number(layer)?), Some(number(expert)?)))
            }
        }
    }

    /// The name for `layer` and `expert`; a number that the pattern lacks is ignored.
    pub(crate) fn name(&self, layer: impl Display, expert: impl Display) -> String {
        match self {
            Self::Fixed(text) => text.to_string(),
            Self::Layer([prefix, suffix]) => format!("{prefix}{layer}{suffix}"),
            Self::Expert([prefix, middle, suffix]) => {
                format!("{prefix}{layer}{middle}{expert}{suffix}")
            }
        }
    }
}

impl Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name(LAYER, EXPERT))
    }
}

fn number(text: &str) -> Option<u32> {
    let canonical =
        text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}
