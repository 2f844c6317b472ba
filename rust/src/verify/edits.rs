//! Which keys of a configuration were edited.

use serde_json::Value;

use super::digests::Truth;
use crate::catalog::MAX_CONFIG;
use crate::io::Root;
use crate::json;

/// Most keys that a message names.
const MAX_NAMED: usize = 20;

/// The keys in which the file `name` differs from what a source of truth holds of it, in words.
pub(super) fn words(root: &Root, name: &str, truths: &[Truth]) -> String {
    let parse = |text: &[u8]| json::value(text).ok();
    let published = truths.iter().find_map(|t| parse(t.config.as_ref()?.as_bytes()));
    let Some(published) = published else {
        return "only its digest is known, so the keys that differ cannot be named".into();
    };
    let found = root.read(name, MAX_CONFIG).ok().flatten();
    let Some(found) = found.and_then(|bytes| parse(&bytes)) else { return "it is no JSON".into() };
    let mut keys = keys(&published, &found);
    let more = keys.len().saturating_sub(MAX_NAMED);
    keys.truncate(MAX_NAMED);
    match (keys.is_empty(), more) {
        (true, _) => "no key differs, only the spelling".into(),
        (false, 0) => format!("keys that differ: {}", keys.join(", ")),
        (false, more) => format!("keys that differ: {} and {more} more", keys.join(", ")),
    }
}

/// The paths of keys that are added, removed or changed, each with the word for it.
pub(crate) fn keys(published: &Value, found: &Value) -> Vec<String> {
    let mut keys = Vec::new();
    compare("", published, found, &mut keys);
    keys
}

fn compare(path: &str, published: &Value, found: &Value, keys: &mut Vec<String>) {
    let (Value::Object(before), Value::Object(now)) = (published, found) else {
        if !same(published, found) {
            keys.push(format!("{path} (changed)"));
        }
        return;
    };
    let inside = |key: &str| match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    };
    for (key, value) in before {
        match now.get(key) {
            Some(held) => compare(&inside(key), value, held, keys),
            None => keys.push(format!("{} (removed)", inside(key))),
        }
    }
    let added = now.keys().filter(|key| !before.contains_key(*key));
    keys.extend(added.map(|key| format!("{} (added)", inside(key))));
}

/// Equality that does not mind how a fraction is spelled; numbers are kept as they were written.
fn same(published: &Value, found: &Value) -> bool {
    match (published, found) {
        (Value::Number(one), Value::Number(other)) if one.is_f64() && other.is_f64() => {
            one.as_f64() == other.as_f64()
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| same(a, b))
        }
        _ => published == found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_named_where_they_lie() {
        let before = json!({ "a": 1, "b": { "c": [1, 2], "d": 2 }, "gone": null });
        let now = json!({ "a": 1, "b": { "c": [1, 3], "d": 2, "e": {} }, "new": 0 });
        let named = ["b.c (changed)", "b.e (added)", "gone (removed)", "new (added)"];
        assert_eq!(keys(&before, &now), named);
        let spelled = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let one = spelled(r#"{ "eps": 1e-6, "list": [0.10, 7] }"#);
        assert!(keys(&one, &spelled(r#"{ "list": [0.1, 7], "eps": 0.000001 }"#)).is_empty());
        assert_eq!(keys(&one, &spelled(r#"{ "list": [0.1, 8], "eps": 1e-6 }"#)).len(), 1);
    }
}
