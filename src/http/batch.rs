//! The body of a batch: what is asked, or what is wrong with it.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// What is wrong with the body of a batch. The texts are part of the contract.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBatch {
    /// No JSON; says where.
    #[error("invalid JSON: {0}")]
    Syntax(String),
    /// The key is missing, or the value no array.
    #[error("model_ids must be an array")]
    NotAnArray,
    /// An element of another type, by its place.
    #[error("model_ids[{0}] must be a string")]
    NotAString(usize),
    /// The other key is neither true nor false.
    #[error("resolve_dependencies must be a boolean")]
    NotABoolean,
    /// More ids than are answered at once.
    #[error("model_ids has {count} ids, the limit is {limit}: ask in several batches")]
    TooMany {
        /// How many were asked.
        count: usize,
        /// How many may be.
        limit: usize,
    },
}

/// What a body asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// In its order.
    pub ids: Vec<Cow<'a, str>>,
    /// Whether what the models need is asked too.
    pub resolve_dependencies: bool,
}

/// What `body` asks for. Where several things are wrong, that it is no JSON is said first.
///
/// # Errors
/// See [`BadBatch`].
pub fn parse(body: &[u8], limit: usize) -> Result<Asked<'_>, BadBatch> {
    // Looking at all of the text at once is cheaper than at each string; what is no text is left to say to the parser.
    let batch = match std::str::from_utf8(body) {
        Ok(text) => match plain_ids(text) {
            Some(ids) if ids.len() <= limit => return Ok(Asked { ids, resolve_dependencies: false }),
            _ => serde_json::from_str(text),
        },
        Err(_) => serde_json::from_slice(body),
    };
    let batch: Batch<'_> = batch.map_err(|error| BadBatch::Syntax(error.to_string()))?;
    let ids = batch.ids.ok_or(BadBatch::NotAnArray)?;
    if let Some(place) = ids.not_a_string {
        return Err(BadBatch::NotAString(place));
    }
    let resolve_dependencies = batch.resolve_dependencies.ok_or(BadBatch::NotABoolean)?;
    if ids.strings.len() > limit {
        return Err(BadBatch::TooMany { count: ids.strings.len(), limit });
    }
    Ok(Asked { ids: ids.strings, resolve_dependencies })
}

/// The ids of a body in the form that every client's JSON writer gives it: the one key, strings without an escape, white
/// space anywhere. `None` = the parser must look; it took a third of all a batch costs.
fn plain_ids(text: &str) -> Option<Vec<Cow<'_, str>>> {
    /// Between ids of the usual length; a guess too low costs a copy, one too high some bytes for a moment.
    const BYTES_PER_ID: usize = 10;
    let bytes = text.as_bytes();
    let mut at = 0;
    take(bytes, &mut at, b"{")?;
    take(bytes, &mut at, b"\"model_ids\"")?;
    take(bytes, &mut at, b":")?;
    take(bytes, &mut at, b"[")?;
    let mut ids = Vec::with_capacity(bytes.len() / BYTES_PER_ID);
    loop {
        take(bytes, &mut at, b"\"")?;
        let start = at;
        let length = bytes[start..].iter().position(|byte| matches!(byte, b'"' | b'\\' | ..b' '))?;
        ids.push(Cow::Borrowed(&text[start..start + length]));
        at += length;
        if bytes[at] != b'"' {
            return None;
        }
        at += 1;
        if take(bytes, &mut at, b",").is_none() {
            break;
        }
    }
    take(bytes, &mut at, b"]")?;
    take(bytes, &mut at, b"}")?;
    take(bytes, &mut at, b"")?;
    (at == bytes.len()).then_some(ids)
}

/// Goes over white space and then `token`, if that is what comes.
#[inline]
fn take(bytes: &[u8], at: &mut usize, token: &[u8]) -> Option<()> {
    while matches!(bytes.get(*at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        *at += 1;
    }
    bytes[*at..].starts_with(token).then(|| *at += token.len())
}

/// Any JSON value; the ids, if it is an object with an array under `model_ids`. As in JavaScript the last of
/// several equal keys counts.
struct Batch<'a> {
    ids: Option<Ids<'a>>,
    /// Nothing, if it is no boolean; false, if the key is missing.
    resolve_dependencies: Option<bool>,
}

/// An array; the place of the first element that is no string.
struct Ids<'a> {
    strings: Vec<Cow<'a, str>>,
    not_a_string: Option<usize>,
}

/// Any JSON value; its text, if it is a string.
struct Text<'a>(Option<Cow<'a, str>>);

/// Any JSON value; its elements, if it is an array.
struct Array<'a>(Option<Ids<'a>>);

/// The visitor methods of the values that a type takes no interest in.
macro_rules! not_wanted {
    (scalars) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any JSON value")
        }
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok(Self::Value::NOT_WANTED)
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok(Self::Value::NOT_WANTED)
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok(Self::Value::NOT_WANTED)
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok(Self::Value::NOT_WANTED)
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Self::Value::NOT_WANTED)
        }
    };
    (string) => {
        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok(Self::Value::NOT_WANTED)
        }
    };
    (array) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(Self::Value::NOT_WANTED)
        }
    };
    (object) => {
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(Self::Value::NOT_WANTED)
        }
    };
}

impl Batch<'_> {
    const NOT_WANTED: Self = Self { ids: None, resolve_dependencies: Some(false) };
}

impl<'de> Deserialize<'de> for Batch<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Wanted;
        impl<'de> Visitor<'de> for Wanted {
            type Value = Batch<'de>;
            not_wanted!(scalars);
            not_wanted!(string);
            not_wanted!(array);
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Batch<'de>, A::Error> {
                let mut batch = Batch::NOT_WANTED;
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    match key.0.as_deref() {
                        Some("model_ids") => batch.ids = map.next_value::<Array<'de>>()?.0,
                        Some("resolve_dependencies") => {
                            batch.resolve_dependencies = map.next_value::<&RawValue>()?.get().parse().ok();
                        }
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(batch)
            }
        }
        deserializer.deserialize_any(Wanted)
    }
}

impl Array<'_> {
    const NOT_WANTED: Self = Self(None);
}

impl<'de> Deserialize<'de> for Array<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Wanted;
        impl<'de> Visitor<'de> for Wanted {
            type Value = Array<'de>;
            not_wanted!(scalars);
            not_wanted!(string);
            not_wanted!(object);
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Array<'de>, A::Error> {
                let mut ids = Ids { strings: Vec::new(), not_a_string: None };
                let mut place = 0;
                while let Some(element) = seq.next_element::<Text<'de>>()? {
                    match element.0 {
                        Some(text) => ids.strings.push(text),
                        None => ids.not_a_string = ids.not_a_string.or(Some(place)),
                    }
                    place += 1;
                }
                Ok(Array(Some(ids)))
            }
        }
        deserializer.deserialize_any(Wanted)
    }
}

impl Text<'_> {
    const NOT_WANTED: Self = Self(None);
}

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Wanted;
        impl<'de> Visitor<'de> for Wanted {
            type Value = Text<'de>;
            not_wanted!(scalars);
            not_wanted!(array);
            not_wanted!(object);
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Some(Cow::Borrowed(text))))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Some(Cow::Owned(text.into()))))
            }
        }
        deserializer.deserialize_any(Wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(body: &str) -> Result<Vec<String>, String> {
        let ids = parse(body.as_bytes(), 3).map_err(|error| error.to_string())?;
        Ok(ids.ids.into_iter().map(Cow::into_owned).collect())
    }

    #[test]
    fn takes_strings_in_any_form() {
        assert_eq!(ids(r#"{"model_ids":["a","b\n\u00e4","😀"]}"#), Ok(vec!["a".into(), "b\nä".into(), "😀".into()]));
        assert_eq!(ids(r#" {"x":{"model_ids":[1]},"model_ids":[],"y":[[]]} "#), Ok(vec![]));
        assert_eq!(ids(r#"{"model\u005fids":["a"]}"#), Ok(vec!["a".into()]));
        assert_eq!(ids(r#"{"model_ids":3,"model_ids":["last"]}"#), Ok(vec!["last".into()]));
    }

    #[test]
    fn plain_bodies_are_read_as_the_parser_reads_them() {
        let parts = [
            "{",
            "}",
            "[",
            "]",
            "\"",
            "\"model_ids\"",
            ":",
            ",",
            " ",
            "\t\n",
            "\"a\"",
            "\"flux-dev\"",
            "\"ä/😀\"",
            "\"\"",
            "\\",
            "\\n",
            "1",
            "null",
            "x",
            "\u{1}",
            "\u{7f}",
            "\"model_ids\":[",
            "{\"model_ids\":[\"a\"",
            ",\"b\"",
            "]}",
        ];
        let mut random = fastrand::Rng::with_seed(5);
        let mut plain = 0;
        for _ in 0..300_000 {
            let some: String = (0..random.usize(1..6)).map(|_| parts[random.usize(0..parts.len())]).collect();
            let text = if random.bool() { some } else { format!("{{\"model_ids\":[\"a\"{some}") };
            let Some(ids) = plain_ids(&text) else { continue };
            plain += 1;
            let parsed: Batch<'_> = serde_json::from_str(&text).expect(&text);
            assert_eq!(parsed.ids.map(|ids| ids.strings), Some(ids), "{text}");
        }
        assert!(plain > 500, "only {plain} plain bodies were made");
        assert_eq!(plain_ids(" { \"model_ids\" : [ \"a\" , \"b\" ] }\n").map(|ids| ids.len()), Some(2));
    }

    #[test]
    fn says_what_is_wrong() {
        for body in ["{}", "[]", "null", "3", "-3", "1.5", "true", r#""model_ids""#, r#"{"model_ids":null}"#] {
            assert_eq!(ids(body), Err("model_ids must be an array".into()), "{body}");
        }
        for body in [r#"{"model_ids":"a"}"#, r#"{"model_ids":{"0":"a"}}"#, r#"{"Model_ids":[]}"#] {
            assert_eq!(ids(body), Err("model_ids must be an array".into()), "{body}");
        }
        for element in ["1", "-1", "0.5", "null", "true", "[]", "[\"a\"]", "{}", "{\"a\":1}"] {
            let body = format!(r#"{{"model_ids":["a","b",{element},4]}}"#);
            assert_eq!(ids(&body), Err("model_ids[2] must be a string".into()), "{body}");
        }
        let many = ids(r#"{"model_ids":["a","b","c","a"]}"#);
        assert_eq!(many, Err("model_ids has 4 ids, the limit is 3: ask in several batches".into()));
    }

    #[test]
    fn the_other_key_is_a_boolean_or_missing() {
        let parsed = |rest: &str| {
            let body = format!(r#"{{"model_ids":["a"]{rest}}}"#);
            parse(body.as_bytes(), 3).map(|asked| asked.resolve_dependencies).map_err(|error| error.to_string())
        };
        for (rest, expected) in [
            ("", false),
            (r#","resolve_dependencies": true "#, true),
            (r#","resolve_dependencies":false"#, false),
            (r#","resolve_dependencies":1,"resolve_dependencies":true"#, true),
            (r#","x":{"resolve_dependencies":1}"#, false),
        ] {
            assert_eq!(parsed(rest), Ok(expected), "{rest}");
        }
        for value in ["null", "1", "0", "\"true\"", "[]", "[true]", "{}", "1.5"] {
            let error = parsed(&format!(r#","resolve_dependencies":{value}"#));
            assert_eq!(error, Err("resolve_dependencies must be a boolean".into()), "{value}");
        }
        let both = ids(r#"{"resolve_dependencies":1,"model_ids":["a",1]}"#);
        assert_eq!(both, Err("model_ids[1] must be a string".into()));
        let broken = ids(r#"{"model_ids":[],"resolve_dependencies":tru}"#);
        assert!(broken.is_err_and(|error| error.starts_with("invalid JSON: ")));
    }

    #[test]
    fn broken_json_is_said_first_and_with_its_place() {
        let deep = "[".repeat(100_000);
        for body in
            ["", " ", "{", "{]", r#"{"model_ids":[1,}"#, r#"{"model_ids":[]} x"#, r#"{"model_ids":["\ud800"]}"#, &deep]
        {
            let error = ids(body).expect_err(body);
            assert!(error.starts_with("invalid JSON: ") && error.contains("line 1 column"), "{error}");
        }
        assert!(matches!(parse(b"{\"model_ids\":[\"\xff\"]}", 3), Err(BadBatch::Syntax(_))));
    }
}
