//! Sizes as people write them.

use super::UsageError;

/// Parses `64M`, `64 MiB`, `512K`, `1G`: powers of 1024; a bare number means bytes.
///
/// # Errors
/// One sentence that says how sizes are written.
pub fn parse(text: &str) -> Result<u64, UsageError> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let suffix = text[digits.len()..].trim_start().to_ascii_uppercase();
    let unit = match suffix.as_str() {
        "" | "B" => Some(1),
        "K" | "KB" | "KIB" => Some(1 << 10),
        "M" | "MB" | "MIB" => Some(1 << 20),
        "G" | "GB" | "GIB" => Some(1 << 30),
        _ => None,
    };
    let number = digits.parse::<u64>().ok();
    let bytes = number.zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
    bytes.ok_or_else(|| UsageError(format!("{text} is no size; write it like 64M, 512K or 1G")))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn usual_spellings_are_read() {
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("64MiB", 64 << 20),
            ("64 MB", 64 << 20),
            ("512k", 512 << 10),
            ("1G", 1 << 30),
            ("4096", 4096),
            ("7B", 7),
            ("0", 0),
        ] {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "M",
            "-1M",
            "1.5M",
            "64X",
            "64Mi",
            "M64",
            "99999999999G",
            "é",
            "6é",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
