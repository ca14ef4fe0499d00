//! Headers the user wants on every request.

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

/// Headers for a collector, such as an API key. Their values are never printed.
#[derive(Clone, Debug, Default)]
pub struct Headers(HeaderMap);

/// An entry of `OTEL_EXPORTER_OTLP_HEADERS` that is no header. It says which by number alone, as
/// the text may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "entry {entry} of OTEL_EXPORTER_OTLP_HEADERS is not a header: write \
     NAME=VALUE,NAME=VALUE with values percent-encoded"
)]
pub struct BadHeader {
    /// Which entry, counted from 1.
    pub entry: usize,
}

impl Headers {
    /// Parses `name=value,name=value`, the format of W3C baggage without properties: values are
    /// percent-encoded, and blanks around names and values do not count.
    ///
    /// # Errors
    /// [`BadHeader`] for the first entry that is none.
    pub fn parse(text: &str) -> Result<Self, BadHeader> {
        let mut headers = HeaderMap::new();
        for (at, entry) in text.split(',').enumerate() {
            if entry.trim().is_empty() {
                continue;
            }
            let (name, value) = parse_entry(entry).ok_or(BadHeader { entry: at + 1 })?;
            headers
                .try_append(name, value)
                .map_err(|_| BadHeader { entry: at + 1 })?;
        }
        Ok(Self(headers))
    }

    pub(super) fn map(&self) -> &HeaderMap {
        &self.0
    }
}

fn parse_entry(entry: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = entry.split_once('=')?;
    let value: Vec<u8> = percent_decode_str(value.trim()).collect();
    let mut value = HeaderValue::from_bytes(&value).ok()?;
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str)]) {
        let headers = Headers::parse(text).unwrap();
        let found: Vec<_> = headers
            .map()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn entries_are_separated_by_commas_and_percent_decoded() {
        check("", &[]);
        check(" , ", &[]);
        check("a=1", &[("a", "1")]);
        check("Api-Key = x%2Cy ,b=", &[("api-key", "x,y"), ("b", "")]);
        check(
            "authorization=Basic%20dQ==",
            &[("authorization", "Basic dQ==")],
        );
    }

    #[test]
    fn a_bad_entry_is_told_by_number() {
        for (text, entry) in [
            ("a", 1),
            ("a=1,b", 2),
            ("a b=1", 1),
            ("a=%0a", 1),
            ("=1", 1),
        ] {
            assert_eq!(
                Headers::parse(text).unwrap_err(),
                BadHeader { entry },
                "{text}"
            );
        }
    }

    #[test]
    fn values_are_not_printed() {
        let headers = Headers::parse("authorization=hunter2").unwrap();
        assert!(!format!("{headers:?}").contains("hunter2"));
    }
}
