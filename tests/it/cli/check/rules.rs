//! One table of the rules for rows. A rule that is missing in it does not compile, and a changed verdict fails a test that
//! says what to change with it.

use model_catalog::catalog::model::{RULES_VERSION, RawModel, RowError, Rules, SavePathError, UrlError};
use xxhash_rust::xxh3::xxh3_64;

use super::problems;

/// The rules, and a part of each message that no other has.
macro_rules! rules {
    ($($rule:pat => $text:literal,)*) => {
        /// A part of the message of each rule; SQL reports the same messages.
        pub const TEXTS: &[&str] = &[$($text),*];

        fn text(error: &RowError) -> &'static str {
            match error {
                $($rule => $text,)*
            }
        }
    };
}

rules! {
    RowError::Missing(_) => " is missing: ",
    RowError::ControlCharacter(..) => " contains the control character ",
    RowError::SavePath(SavePathError::Absolute) => "save_path is absolute: ",
    RowError::SavePath(SavePathError::Backslash) => "save_path has a backslash: ",
    RowError::SavePath(SavePathError::Escapes) => "save_path escapes the models folder: ",
    RowError::SavePath(SavePathError::NoFileName) => "save_path has no file name: ",
    RowError::SavePath(SavePathError::Reserved) => "save_path has a part that begins with `.model-catalog`",
    RowError::SavePath(SavePathError::TooLong) => "save_path has more than 4096 bytes",
    RowError::SavePath(SavePathError::LongPart) => "save_path has a part of more than 255 bytes",
    RowError::DownloadUrl(UrlError::NotAbsolute(_)) => "download_url is not an absolute URL: ",
    RowError::DownloadUrl(UrlError::Scheme { .. }) => "download_url has the scheme ",
    RowError::DownloadUrl(UrlError::Backslash) => "download_url has a backslash",
    RowError::DownloadUrl(UrlError::Credentials) => "download_url has a user name or a password ",
    RowError::Mirror(_, UrlError::NotAbsolute(_)) => "] is not an absolute URL: ",
    RowError::Mirror(_, UrlError::Scheme { .. }) => "] has the scheme ",
    RowError::Mirror(_, UrlError::Backslash) => "] has a backslash",
    RowError::Mirror(_, UrlError::Credentials) => "] has a user name or a password ",
    RowError::Size(_) => "file_size_gb is ",
    RowError::NotStrings(_) => " must be a JSON array of strings",
    RowError::Duplicate => "another row has the same id: ",
    // A database in UTF-8 has no such row: see tests/it/sync/encodings.rs.
    RowError::NotUtf8(_) => "",
    RowError::Unreadable(_) => "",
}

/// The version of the rules, and the digest of their verdicts on [`problems::rows`].
const VERDICTS: (u32, u64) = (3, 0x0dd4_8876_aa5e_dc1e);

#[test]
fn changed_rules_have_a_new_version() {
    let rows = problems::rows();
    let verdicts = rows.iter().map(|row| {
        let value = |column: usize| row[column].as_deref();
        let row = RawModel {
            id: value(0),
            name: value(1),
            download_url: value(2),
            file_size_gb: value(3),
            hash: value(4),
            auth_required: value(5).map(|text| text == "true"),
            auth_provider: value(6),
            save_path: value(7),
            dependencies: value(8),
            description: value(9),
            mirrors: value(10),
        };
        match row.render(&Rules::default(), &mut Vec::new()) {
            Ok(()) => "accepted\n".into(),
            Err(error) => {
                assert!(error.to_string().contains(text(&error)), "{error:?}");
                format!("{error}\n")
            }
        }
    });
    let digest = xxh3_64(verdicts.collect::<String>().as_bytes());
    assert_eq!(
        (RULES_VERSION, digest),
        VERDICTS,
        "the verdicts on these rows changed to {digest:#x}. If a rule changed, increment RULES_VERSION in \
         src/catalog/rules.rs, so that the rows of older snapshot files are checked again, and VERDICTS here; if only \
         rows were added, replace the digest"
    );
}
