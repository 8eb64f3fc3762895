//! File sizes in bytes, and as rows write them: decimal gigabytes, rounded.

/// Digits after the point of a size in gigabytes that is exact to the byte.
const EXACT_DIGITS: usize = 9;

/// Decimal gigabytes, rounded up to hundredths, so that a small file does not have a size of 0.
pub(crate) fn gigabytes(bytes: u128) -> String {
    let hundredths = bytes.div_ceil(10_000_000);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// Whether `gigabytes`, in the text format of a Postgres `numeric`, can stand for a file of `bytes`: however it was
/// rounded, it differs by less than one in its last digit.
pub(crate) fn matches(gigabytes: &str, bytes: u64) -> bool {
    let (whole, fraction) = gigabytes.split_once('.').unwrap_or((gigabytes, ""));
    let shown = &fraction[..fraction.len().min(EXACT_DIGITS)];
    let unit = 10_u128.pow((EXACT_DIGITS - shown.len()) as u32);
    let value = format!("{whole}{shown}").parse::<u128>().ok().and_then(|digits| digits.checked_mul(unit));
    value.is_some_and(|value| value.abs_diff(bytes.into()) < unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_match_as_far_as_they_are_written() {
        for (text, bytes, expected) in [
            ("23.80", 23_802_932_552, true),
            ("23.81", 23_802_932_552, true),
            ("23.79", 23_802_932_552, false),
            ("23.82", 23_802_932_552, false),
            ("23.8", 23_802_932_552, true),
            ("24", 23_802_932_552, true),
            ("22.17", 23_802_932_552, false),
            ("23.802932552", 23_802_932_552, true),
            ("23.802932551", 23_802_932_552, false),
            ("23.8029325520000000", 23_802_932_552, true),
            ("0.00", 340_000, true),
            ("0.01", 340_000, true),
            ("0.01", 10_000_000, true),
            ("0.02", 340_000, false),
            ("0", 0, true),
            ("99999999999999999999999999999999999999", 1, false),
            ("NaN", 1, false),
        ] {
            assert_eq!(matches(text, bytes), expected, "{text} {bytes}");
        }
    }

    #[test]
    fn written_sizes_match() {
        for bytes in [0, 1, 9_999_999, 10_000_000, 10_000_001, 246_144_152, 23_802_932_552] {
            assert!(matches(&gigabytes(bytes.into()), bytes), "{bytes}");
        }
    }
}
