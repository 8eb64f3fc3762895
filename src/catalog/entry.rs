//! A model as it is served: its rendered JSON, how that is built, and how its fields are read back.
//!
//! Everything that depends on the layout of the JSON is in this file.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{self, Write};

use memchr::memmem::{self, Finder};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use triomphe::ThinArc;
use xxhash_rust::xxh3::xxh3_64;

use super::row_error::RowError;
use super::rules::Rules;

/// The ten fields of a model and its mirrors, in the order in which they are rendered.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Fields<'a> {
    /// Unique id of the model.
    #[serde(borrow)]
    pub(crate) id: Cow<'a, str>,
    /// File name shown to people.
    #[serde(borrow)]
    pub(crate) name: Cow<'a, str>,
    /// Absolute URL of the file.
    #[serde(borrow)]
    pub(crate) download_url: Cow<'a, str>,
    /// Size in GB, a JSON number in its shortest form.
    #[serde(borrow)]
    pub(crate) file_size_gb: Option<&'a RawValue>,
    /// Hash of the file, of any kind; see [`FileHash`](super::hash::FileHash).
    pub(crate) hash: Option<Cow<'a, str>>,
    /// Whether the download needs a token.
    pub(crate) auth_required: bool,
    /// The provider that issues the token.
    pub(crate) auth_provider: Option<Cow<'a, str>>,
    /// Path of the file on a machine, relative to its models folder.
    #[serde(borrow)]
    pub(crate) save_path: Cow<'a, str>,
    /// Ids of the models that this one needs.
    pub(crate) dependencies: Vec<String>,
    /// Free text for people.
    pub(crate) description: Option<Cow<'a, str>>,
    /// Further URLs of the file. Without any, the JSON has only the ten fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mirrors: Vec<String>,
}

impl Fields<'_> {
    /// Appends the fields to `json` as one JSON object.
    pub(crate) fn render(&self, json: &mut Vec<u8>) -> serde_json::Result<()> {
        serde_json::to_writer(json, self)
    }
}

/// One model: its id, its rendered JSON and the digest of that JSON, in one allocation behind a thin pointer. A pointer
/// of two words would double the size of the index tables, of which a full read holds two sets.
#[derive(Clone, Debug)]
pub struct Entry(ThinArc<Header, u8>);

#[derive(Clone, Copy, Debug)]
struct Header {
    digest: u64,
    id_length: u32,
}

impl Entry {
    fn split(&self) -> (&[u8], &[u8]) {
        self.0.slice.split_at(self.0.header.header.id_length as usize)
    }

    /// The id, which is valid UTF-8.
    pub fn id(&self) -> &[u8] {
        self.split().0
    }

    /// The rendered JSON.
    pub fn json(&self) -> &[u8] {
        self.split().1
    }

    /// XXH3-64 of the rendered JSON: the entity tag, and the summand of this model in the revision.
    pub(crate) fn digest(&self) -> u64 {
        self.0.header.header.digest
    }

    /// Whether both are the same allocation.
    pub(crate) fn ptr_eq(&self, other: &Self) -> bool {
        self.0.ptr() == other.0.ptr()
    }

    /// All fields. `None` only for JSON that was not rendered by [`Fields::render`].
    pub(crate) fn fields(&self) -> Option<Fields<'_>> {
        serde_json::from_slice(self.json()).ok()
    }

    /// Checks the fields of this model by `rules`, which may not be those under which its row was accepted.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub(crate) fn check(&self, rules: &Rules) -> Result<(), RowError> {
        let fields = self.fields().ok_or_else(|| RowError::Unreadable("it is not a model".into()))?;
        fields.check(rules)
    }

    /// The ids of the models that this one needs, each once. Reads nothing else, so it costs less than
    /// [`Entry::fields`].
    pub(crate) fn dependencies(&self) -> Vec<String> {
        #[derive(Deserialize)]
        struct OnlyDependencies {
            dependencies: Vec<String>,
        }
        let parsed = serde_json::from_slice::<OnlyDependencies>(self.json());
        let mut ids = parsed.map_or(Vec::new(), |only| only.dependencies);
        let mut seen = HashSet::new();
        ids.retain(|id| seen.insert(id.clone()));
        ids
    }
}

/// Whether the row with `json` is served instead of the one with `other`, if both are valid and have the same id. Their
/// order does not matter, so all servers serve the same one.
pub(crate) fn is_preferred(json: &[u8], other: &[u8]) -> bool {
    json < other
}

/// Builds entries one after the other in a buffer that is reused.
#[derive(Debug, Default)]
pub(crate) struct EntryBuilder(Vec<u8>);

impl EntryBuilder {
    /// Starts an entry with this id. Its rendered JSON is to be appended to the buffer returned.
    pub(crate) fn begin(&mut self, id: &str) -> &mut Vec<u8> {
        self.0.clear();
        self.0.extend_from_slice(id.as_bytes());
        &mut self.0
    }

    /// The JSON written so far; `id` must be the one given to [`EntryBuilder::begin`].
    pub(crate) fn json(&self, id: &str) -> &[u8] {
        self.0.get(id.len()..).unwrap_or_default()
    }

    /// The finished entry; `id` must be the one given to [`EntryBuilder::begin`]. Its length fits into 32 bits because
    /// it is a column of a row, which Postgres limits to 1 GiB.
    pub(crate) fn finish(&mut self, id: &str) -> Entry {
        let id_length = u32::try_from(id.len()).unwrap_or(u32::MAX);
        Entry(ThinArc::from_header_and_slice(Header { digest: xxh3_64(self.json(id)), id_length }, &self.0))
    }
}

const ID_BEGIN: &[u8] = br#"{"id":""#;
const NAME_BEGIN: &[u8] = br#"","name":"#;
const NAME_END: &[u8] = br#","download_url":""#;

/// Reads the id, which is the first key, from rendered JSON. Only an id with an escape needs a JSON parser.
pub(crate) fn read_id(json: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct OnlyId {
        id: String,
    }
    let id = json.strip_prefix(ID_BEGIN)?;
    let end = id.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    if id[end] == b'"' {
        return std::str::from_utf8(&id[..end]).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice::<OnlyId>(json).ok().map(|only| Cow::Owned(only.id))
}

/// Reads names, with its search tables built once for a scan of many entries.
#[derive(Debug)]
pub(crate) struct NameReader {
    end: Finder<'static>,
}

impl Default for NameReader {
    fn default() -> Self {
        Self { end: Finder::new(NAME_END) }
    }
}

impl NameReader {
    /// The name, which is the second key. A quote inside a value is preceded by a backslash, so neither delimiter can
    /// occur in one.
    pub(crate) fn read<'a>(&self, entry: &'a Entry) -> Option<Cow<'a, [u8]>> {
        // The rendered id is as long as the id itself, or longer where it contains escapes.
        let rest = entry.json().get(ID_BEGIN.len() + entry.id().len()..)?;
        let begin = if rest.starts_with(NAME_BEGIN) { 0 } else { memmem::find(rest, NAME_BEGIN)? };
        let rest = &rest[begin + NAME_BEGIN.len()..];
        let quoted = &rest[..self.end.find(rest)?];
        if quoted.contains(&b'\\') {
            return serde_json::from_slice::<String>(quoted).ok().map(|name| Cow::Owned(name.into_bytes()));
        }
        Some(Cow::Borrowed(quoted.get(1..quoted.len().checked_sub(1)?)?))
    }
}

/// Writes rendered models as one JSON array.
#[derive(Debug)]
pub(crate) struct ArrayWriter<W> {
    out: W,
    line_end: &'static [u8],
    len: usize,
}

impl<W: Write> ArrayWriter<W> {
    /// An array without whitespace.
    pub(crate) fn compact(out: W) -> Self {
        Self { out, line_end: b"", len: 0 }
    }

    /// An array with each model on a line of its own, for files that people read and compare.
    pub(crate) fn lines(out: W) -> Self {
        Self { out, line_end: b"\n", len: 0 }
    }

    /// Appends one model.
    pub(crate) fn push(&mut self, json: &[u8]) -> io::Result<()> {
        self.out.write_all(if self.len == 0 { b"[" } else { b"," })?;
        self.out.write_all(self.line_end)?;
        self.out.write_all(json)?;
        self.len += 1;
        Ok(())
    }

    /// Ends the array and flushes the writer.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if self.len == 0 {
            self.out.write_all(b"[")?;
        } else {
            self.out.write_all(self.line_end)?;
        }
        self.out.write_all(b"]")?;
        self.out.write_all(self.line_end)?;
        self.out.flush()
    }

    /// Number of models appended.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Appends `entries` to `json` as an array without whitespace.
pub(crate) fn write_array(json: &mut Vec<u8>, entries: &[&Entry]) {
    let mut array = ArrayWriter::compact(json);
    // Writing to a `Vec` cannot fail.
    entries.iter().for_each(|entry| drop(array.push(entry.json())));
    let _ = array.finish();
}

/// Number of bytes that [`write_array`] appends.
pub(crate) fn array_size(entries: &[&Entry]) -> usize {
    let models: usize = entries.iter().map(|entry| entry.json().len()).sum();
    let (brackets, commas) = (2, entries.len().saturating_sub(1));
    models + brackets + commas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields<'a>(id: &'a str, name: &'a str) -> Fields<'a> {
        Fields {
            id: id.into(),
            name: name.into(),
            download_url: "https://example.org/x?a=\"b\"".into(),
            file_size_gb: serde_json::from_str("23.8").ok(),
            hash: Some("sha256:00".into()),
            auth_required: true,
            auth_provider: None,
            save_path: "checkpoints/x".into(),
            dependencies: ["a", "b \"", "a"].map(String::from).into(),
            description: Some("größer".into()),
            mirrors: vec!["https://example.org/\"name\":".into()],
        }
    }

    fn entry(fields: &Fields<'_>) -> Entry {
        let mut builder = EntryBuilder::default();
        fields.render(builder.begin(&fields.id)).expect("plain types");
        builder.finish(&fields.id)
    }

    #[test]
    fn every_reader_returns_the_values_that_were_rendered() {
        let names = NameReader::default();
        for id in ["flux-dev", "a/b", r#"quote","name":"inner"#, r"back\", "ä\u{e000}", "{\"id\":\""] {
            for name in ["x", "", r#"say "hi" \ ","download_url":""#, r"\", "größe", r#"","name":"#] {
                let written = fields(id, name);
                let entry = entry(&written);
                assert_eq!((entry.id(), read_id(entry.json()).as_deref()), (id.as_bytes(), Some(id)));
                assert_eq!(names.read(&entry).as_deref(), Some(name.as_bytes()), "{id}");
                assert_eq!(entry.dependencies(), ["a", "b \""]);
                let read = entry.fields().expect("rendered fields");
                assert_eq!(format!("{read:?}"), format!("{written:?}"));
            }
        }
    }

    #[test]
    fn ids_are_read_only_from_objects_that_begin_with_one() {
        for json in ["", "{", "{}", r#"{"id":""#, r#"{"id":"a"#, r#"{"id":"\"#, r#"{"id":1}"#, r#" {"id":"a"}"#] {
            assert_eq!(read_id(json.as_bytes()), None, "{json}");
        }
        assert_eq!(read_id(b"{\"id\":\"\xff\"}"), None);
    }

    #[test]
    fn arrays_have_the_size_that_was_computed() {
        let entries: Vec<Entry> = ["a", "b", "c"].iter().map(|id| entry(&fields(id, "x"))).collect();
        for count in 0..=entries.len() {
            let (entries, mut json) = (entries.iter().take(count).collect::<Vec<_>>(), b"before".to_vec());
            write_array(&mut json, &entries);
            assert_eq!(json.len(), "before".len() + array_size(&entries));
            let array: Vec<serde_json::Value> = serde_json::from_slice(&json["before".len()..]).expect("an array");
            assert_eq!(array.len(), count);
        }
    }

    #[test]
    fn lines_hold_one_model_each() {
        let written = |models: &[&str]| {
            let mut out = Vec::new();
            let mut array = ArrayWriter::lines(&mut out);
            models.iter().for_each(|model| array.push(model.as_bytes()).expect("a Vec"));
            assert_eq!(array.len(), models.len());
            array.finish().expect("a Vec");
            String::from_utf8(out).expect("UTF-8")
        };
        assert_eq!(written(&[]), "[]\n");
        assert_eq!(written(&["1"]), "[\n1\n]\n");
        assert_eq!(written(&["1", "2"]), "[\n1,\n2\n]\n");
    }
}
