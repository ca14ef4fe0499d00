//! Durations as people write them.

use std::{str::FromStr, time::Duration};

use super::UsageError;

/// Parses `10s`, `1m30s`, `500ms`, `2h`; a bare number means seconds.
///
/// # Errors
/// One sentence that says how durations are written.
pub fn parse(text: &str) -> Result<Duration, UsageError> {
    let wrong = |why: &str| UsageError(format!("{why}; write it like 10s, 1m30s or 500ms"));
    if let Ok(seconds) = text.parse::<f64>() {
        if seconds <= 0.0 {
            return Err(wrong(&format!("the duration {text} is not positive")));
        }
        return Duration::try_from_secs_f64(seconds)
            .map_err(|_| wrong(&format!("{text} is no duration")));
    }
    // `.3s`, as `.3` is read.
    let with_zero = text.strip_prefix('.').map(|rest| format!("0.{rest}"));
    let duration = jiff::SignedDuration::from_str(with_zero.as_deref().unwrap_or(text))
        .map_err(|_| wrong(&format!("{text} is no duration")))?;
    match Duration::try_from(duration) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(wrong(&format!("the duration {text} is not positive"))),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::time::Duration;

    #[test]
    fn usual_spellings_are_read() {
        for (text, millis) in [
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("2h", 7_200_000),
            ("3", 3000),
            ("0.5", 500),
            (".5", 500),
            (".5s", 500),
            ("1 min", 60_000),
        ] {
            assert_eq!(
                parse(text).unwrap(),
                Duration::from_millis(millis),
                "{text}"
            );
        }
    }

    #[test]
    fn nothing_and_less_are_refused() {
        for text in [
            "0", "0s", "-5s", "-1", "", "ten", "10x", "NaN", "1e30", "inf",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
