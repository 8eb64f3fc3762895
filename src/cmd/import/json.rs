//! JSON values that are decoded one by one: a file is split into its entries first.

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

/// A key and its value.
pub(super) type Member<'a> = (String, &'a RawValue);

/// The elements of an array; `None` for any other value.
pub(super) fn elements(value: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(value.get()).ok()
}

/// The members of an object in the order of the file; `None` for any other value.
pub(super) fn members(value: &RawValue) -> Option<Vec<Member<'_>>> {
    serde_json::from_str::<Members<'_>>(value.get()).ok().map(|members| members.0)
}

/// The member of an object with this key.
pub(super) fn member<'a>(value: &'a RawValue, key: &str) -> Option<&'a RawValue> {
    members(value)?.into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

/// Decodes a value.
///
/// # Errors
/// Why the value is not a `T`, without line and column, which would be relative to the value.
pub(super) fn decode<T: DeserializeOwned>(value: &RawValue) -> Result<T, String> {
    serde_json::from_str(value.get()).map_err(|error| {
        let text = error.to_string();
        text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text).to_owned()
    })
}

struct Members<'a>(Vec<Member<'a>>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}
