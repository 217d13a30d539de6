//! Moments in policies.

use super::field::FieldErrors;

/// Seconds since the epoch of an RFC 3339 time.
pub(super) fn read(path: &str, text: &str) -> Result<i64, FieldErrors> {
    let expected = "an RFC 3339 time is required, such as 2026-11-30T18:00:00Z";
    let parsed = text.parse::<jiff::Timestamp>().ok().filter(|_| is_rfc_3339(text));
    parsed.map(jiff::Timestamp::as_second).ok_or_else(|| FieldErrors::one(path, expected))
}

/// Whether the text has the shape of RFC 3339, which is narrower than what is understood: other
/// readers of the same object must see the same moment.
fn is_rfc_3339(text: &str) -> bool {
    let digits = |part: &str, shape: &str| {
        part.len() == shape.len()
            && part.bytes().zip(shape.bytes()).all(|(byte, wanted)| match wanted {
                b'0' => byte.is_ascii_digit(),
                b'T' => byte.eq_ignore_ascii_case(&b'T'),
                other => byte == other,
            })
    };
    let Some((moment, rest)) = text.split_at_checked("0000-00-00T00:00:00".len()) else {
        return false;
    };
    let offset = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let fraction = &rest[..rest.len() - offset.len()];
    let fraction_fits = fraction.is_empty()
        || (fraction.starts_with('.')
            && (2..=10).contains(&fraction.len())
            && !fraction[1..].contains('.'));
    let offset_fits = offset.eq_ignore_ascii_case("Z")
        || (offset.starts_with(['+', '-']) && digits(&offset[1..], "00:00"));
    digits(moment, "0000-00-00T00:00:00") && fraction_fits && offset_fits
}
