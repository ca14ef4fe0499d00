//! Where to send and how, as the command line and the specification's environment variables say.

use std::time::Duration;

use hotspan_proto::otlp::profiles_service::ExportProfilesServiceRequest;

use super::{BadEndpoint, BadHeader, Endpoint, Headers, Protocol, Signal};

/// How long a collector may take to answer: the specification's default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A collector, for one signal.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its address.
    pub endpoint: Endpoint,
    /// Sent with every request.
    pub headers: Headers,
    /// Longest wait for one answer.
    pub timeout: Duration,
    /// Whether requests are compressed.
    pub has_gzip: bool,
}

/// Why there is no [`Target`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// The address.
    #[error(transparent)]
    Endpoint(#[from] BadEndpoint),
    /// The headers.
    #[error(transparent)]
    Header(#[from] BadHeader),
    /// The time.
    #[error("{0} is not a number of milliseconds above 0")]
    Timeout(String),
    /// The compression.
    #[error("{0} must be gzip or none")]
    Compression(String),
    /// The temporality.
    #[error(
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE must be cumulative, delta or lowmemory"
    )]
    Temporality,
}

/// A variable of the signal alone, or of all, and its name. An empty one counts as not set.
fn variable<S: Signal>(
    name: &str,
    lookup: &impl Fn(&str) -> Option<String>,
) -> Option<(String, String)> {
    [
        format!("OTEL_EXPORTER_OTLP_{}_{name}", S::VARIABLE),
        format!("OTEL_EXPORTER_OTLP_{name}"),
    ]
    .into_iter()
    .find_map(|key| {
        let value = lookup(&key).filter(|value| !value.trim().is_empty())?;
        Some((key, value))
    })
}

impl Target {
    /// Where a signal goes; `None` when nobody says. `url` is that of a collector of all signals,
    /// and stands above the environment.
    ///
    /// # Errors
    /// [`BadTarget`] for what makes no sense.
    pub fn find<S: Signal>(
        url: Option<&str>,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, BadTarget> {
        let protocol = protocol::<S>(&lookup)?;
        let own = format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", S::VARIABLE);
        let endpoint = match (url, variable::<S>("ENDPOINT", &lookup)) {
            // The scheme and the port that the user wrote say what is spoken there.
            (Some(url), _) => Endpoint::of_all::<S>(url, None)?,
            (None, Some((key, url))) if key == own => Endpoint::of_signal::<S>(&url, protocol)?,
            (None, Some((_, url))) => Endpoint::of_all::<S>(&url, protocol)?,
            (None, None) => return Ok(None),
        };
        Self::of::<S>(endpoint, lookup).map(Some)
    }

    /// This address, with the headers, the time and the compression that the environment says.
    ///
    /// # Errors
    /// [`BadTarget`] for what makes no sense.
    pub fn of<S: Signal>(
        endpoint: Endpoint,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, BadTarget> {
        let headers = variable::<S>("HEADERS", &lookup).unwrap_or_default().1;
        let timeout = match variable::<S>("TIMEOUT", &lookup) {
            None => TIMEOUT,
            Some((key, text)) => match text.trim().parse() {
                Ok(ms) if ms > 0 => Duration::from_millis(ms),
                _ => return Err(BadTarget::Timeout(key)),
            },
        };
        let has_gzip = match variable::<S>("COMPRESSION", &lookup) {
            None => true,
            Some((key, text)) => match text.trim() {
                "gzip" => true,
                "none" => false,
                _ => return Err(BadTarget::Compression(key)),
            },
        };
        Ok(Self {
            endpoint,
            headers: Headers::parse(&headers)?,
            timeout,
            has_gzip,
        })
    }
}

/// Where the profile of one recording goes: the user's URL as it is.
///
/// # Errors
/// [`BadTarget`] for what makes no sense.
pub fn profiles_target(url: &str) -> Result<Target, BadTarget> {
    let endpoint = Endpoint::of_signal::<ExportProfilesServiceRequest>(url, None)?;
    Target::of::<ExportProfilesServiceRequest>(endpoint, |name| std::env::var(name).ok())
}

fn protocol<S: Signal>(
    lookup: &impl Fn(&str) -> Option<String>,
) -> Result<Option<Protocol>, BadEndpoint> {
    let Some((_, name)) = variable::<S>("PROTOCOL", lookup) else {
        return Ok(None);
    };
    match name.trim() {
        "grpc" => Ok(Some(Protocol::Grpc)),
        "http/protobuf" => Ok(Some(Protocol::Http)),
        _ => Err(BadEndpoint::UnknownProtocol),
    }
}

/// Whether counters and histograms are wanted as differences. The preference `lowmemory` wants
/// that of what is counted on the spot alone, and we keep all totals anyway.
///
/// # Errors
/// [`BadTarget::Temporality`] when the preference is none that is known.
pub fn delta_is_preferred(lookup: impl Fn(&str) -> Option<String>) -> Result<bool, BadTarget> {
    let name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
    let value = lookup(name).unwrap_or_default();
    match &*value.trim().to_ascii_lowercase() {
        "" | "cumulative" | "lowmemory" => Ok(false),
        "delta" => Ok(true),
        _ => Err(BadTarget::Temporality),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hotspan_proto::otlp::metrics_service::ExportMetricsServiceRequest as Metrics;

    fn find(url: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<Target>, BadTarget> {
        Target::find::<Metrics>(url, |name| {
            let found = variables
                .iter()
                .find(|(key, _)| name == format!("OTEL_EXPORTER_OTLP_{key}"));
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn endpoint(url: Option<&str>, variables: &[(&str, &str)]) -> String {
        find(url, variables).unwrap().unwrap().endpoint.to_string()
    }

    #[test]
    fn the_nearest_word_counts() {
        let all = ("ENDPOINT", "http://all:4318/x");
        let own = ("METRICS_ENDPOINT", "http://own:4318/y");
        assert!(find(None, &[]).unwrap().is_none());
        assert_eq!(endpoint(None, &[all]), "http://all:4318/x/v1/metrics");
        assert_eq!(endpoint(None, &[all, own]), "http://own:4318/y");
        assert_eq!(
            endpoint(Some("http://cli:4317"), &[all, own]),
            "grpc://cli:4317"
        );
        let grpc = ("PROTOCOL", "grpc");
        let port = ("ENDPOINT", "http://h:9");
        assert_eq!(endpoint(None, &[port, grpc]), "grpc://h:9");
        let http = ("METRICS_PROTOCOL", "http/protobuf");
        assert_eq!(endpoint(None, &[port, grpc, http]), "http://h:9/v1/metrics");
    }

    #[test]
    fn settings_have_defaults_and_limits() {
        let url = ("ENDPOINT", "http://h:9");
        let target = find(None, &[url]).unwrap().unwrap();
        assert_eq!((target.timeout, target.has_gzip), (TIMEOUT, true));
        let set = [
            url,
            ("TIMEOUT", "250"),
            ("METRICS_COMPRESSION", "none"),
            ("HEADERS", "a=1"),
        ];
        let target = find(None, &set).unwrap().unwrap();
        assert_eq!(
            (target.timeout, target.has_gzip),
            (Duration::from_millis(250), false)
        );
        assert_eq!(target.headers.map().len(), 1);
        for (name, value) in [
            ("TIMEOUT", "0"),
            ("COMPRESSION", "zstd"),
            ("PROTOCOL", "http/json"),
            ("HEADERS", "x"),
        ] {
            assert!(find(None, &[url, (name, value)]).is_err(), "{name}");
        }
        assert!(!delta_is_preferred(|_| None).unwrap());
        assert!(delta_is_preferred(|_| Some("Delta".into())).unwrap());
        assert!(delta_is_preferred(|_| Some("x".into())).is_err());
    }
}
