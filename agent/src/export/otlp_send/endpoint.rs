//! Where to send, as the user writes it.

use std::fmt;

use http::{
    Uri,
    uri::{PathAndQuery, Scheme},
};

use super::Signal;

/// The port that OTLP gives to gRPC.
const GRPC_PORT: u16 = 4317;

/// What is spoken at an [`Endpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with protobuf bodies.
    Http,
}

/// A collector's address, and what to speak there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    protocol: Protocol,
    /// Scheme `http` or `https`. The path is `/` for gRPC.
    uri: Uri,
}

/// Why a text is no [`Endpoint`]. Each sentence says how to write it instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEndpoint {
    /// Not a URL with a scheme and a host.
    #[error(
        "the collector's address is not a URL: write it like http://HOST:4317 for gRPC or \
         http://HOST:4318 for HTTP"
    )]
    NotAUrl,
    /// A scheme that is none of ours.
    #[error("the collector's address must start with http://, https://, grpc:// or grpcs://")]
    UnknownScheme,
    /// `http://user:password@host`.
    #[error(
        "the collector's address takes no user name or password: put an authorization header in \
         OTEL_EXPORTER_OTLP_HEADERS"
    )]
    HasCredentials,
    /// A protocol by name that we do not speak, or that does not go with the scheme.
    #[error("OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf, and go with the address")]
    UnknownProtocol,
    /// `grpc://host/path`.
    #[error("a collector's gRPC address takes no path: leave out what follows the port")]
    GrpcWithPath,
}

impl Endpoint {
    /// Parses the URL of one signal: HTTP goes to its path, or that of the signal when it has none.
    /// The scheme `grpc` or `grpcs` means gRPC, as does port 4317 without a path, unless `protocol`
    /// says which it is; anything else is HTTP.
    ///
    /// # Errors
    /// [`BadEndpoint`] when it is none.
    pub fn of_signal<S: Signal>(
        url: &str,
        protocol: Option<Protocol>,
    ) -> Result<Self, BadEndpoint> {
        Self::parse(url, protocol, |path| {
            if path == "/" {
                S::HTTP_PATH.to_owned()
            } else {
                path.to_owned()
            }
        })
    }

    /// Parses the URL of a collector that takes all signals: HTTP goes to the signal's path below
    /// the URL's own.
    ///
    /// # Errors
    /// [`BadEndpoint`] when it is none.
    pub fn of_all<S: Signal>(url: &str, protocol: Option<Protocol>) -> Result<Self, BadEndpoint> {
        Self::parse(url, protocol, |path| {
            format!("{}{}", path.trim_end_matches('/'), S::HTTP_PATH)
        })
    }

    fn parse(
        url: &str,
        protocol: Option<Protocol>,
        http_path: impl FnOnce(&str) -> String,
    ) -> Result<Self, BadEndpoint> {
        let uri: Uri = url.trim().parse().map_err(|_| BadEndpoint::NotAUrl)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(BadEndpoint::NotAUrl);
        };
        let (scheme, is_grpc) = match &*scheme.to_ascii_lowercase() {
            "http" => (Scheme::HTTP, false),
            "https" => (Scheme::HTTPS, false),
            "grpc" => (Scheme::HTTP, true),
            "grpcs" => (Scheme::HTTPS, true),
            _ => return Err(BadEndpoint::UnknownScheme),
        };
        if authority.as_str().contains('@') {
            return Err(BadEndpoint::HasCredentials);
        }
        let port = authority.port_u16();
        let has_port = authority.as_str().len() > authority.host().len();
        if authority.host().is_empty() || (has_port && port.is_none()) {
            return Err(BadEndpoint::NotAUrl);
        }
        let has_path = uri.path_and_query().is_some_and(|path| path != "/");
        let mut parts = uri.clone().into_parts();
        parts.scheme = Some(scheme);
        let guess = if is_grpc || (port == Some(GRPC_PORT) && !has_path) {
            Protocol::Grpc
        } else {
            Protocol::Http
        };
        let protocol = protocol.unwrap_or(guess);
        if is_grpc && protocol == Protocol::Http {
            return Err(BadEndpoint::UnknownProtocol);
        }
        if protocol == Protocol::Grpc {
            if has_path {
                return Err(BadEndpoint::GrpcWithPath);
            }
            if port.is_none() {
                parts.authority = format!("{authority}:{GRPC_PORT}").parse().ok();
            }
            parts.path_and_query = Some(PathAndQuery::from_static("/"));
        } else {
            let query = uri
                .query()
                .map_or(String::new(), |query| format!("?{query}"));
            let path = format!("{}{query}", http_path(uri.path()));
            parts.path_and_query = Some(path.parse().map_err(|_| BadEndpoint::NotAUrl)?);
        }
        let uri = Uri::from_parts(parts).map_err(|_| BadEndpoint::NotAUrl)?;
        Ok(Self { protocol, uri })
    }

    /// What is spoken there.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub(super) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(super) fn has_tls(&self) -> bool {
        self.uri.scheme() == Some(&Scheme::HTTPS)
    }
}

/// Without the query, which may hold a key.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match (self.protocol, self.has_tls()) {
            (Protocol::Grpc, false) => "grpc",
            (Protocol::Grpc, true) => "grpcs",
            (Protocol::Http, false) => "http",
            (Protocol::Http, true) => "https",
        };
        let authority = self.uri.authority().map_or("", |found| found.as_str());
        let path = match self.uri.path() {
            "/" => "",
            path => path,
        };
        write!(f, "{scheme}://{authority}{path}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hotspan_proto::otlp::{
        metrics_service::ExportMetricsServiceRequest as Metrics,
        profiles_service::ExportProfilesServiceRequest as Profiles,
    };

    fn check(url: &str, expected: Result<&str, BadEndpoint>) {
        let shown = Endpoint::of_signal::<Profiles>(url, None).map(|endpoint| endpoint.to_string());
        assert_eq!(shown, expected.map(str::to_owned), "{url}");
    }

    #[test]
    fn scheme_and_port_choose_the_protocol() {
        check("http://h:4317", Ok("grpc://h:4317"));
        check("http://h:4317/", Ok("grpc://h:4317"));
        check("https://h:4317", Ok("grpcs://h:4317"));
        check("HTTP://h:4317", Ok("grpc://h:4317"));
        check("grpc://h:9", Ok("grpc://h:9"));
        check("grpcs://h:4318", Ok("grpcs://h:4318"));
        check("grpc://h", Ok("grpc://h:4317"));
        check("grpc://[::1]", Ok("grpc://[::1]:4317"));
        check("http://h:4318", Ok("http://h:4318/v1development/profiles"));
        check("https://h", Ok("https://h/v1development/profiles"));
        check("http://h:80/", Ok("http://h:80/v1development/profiles"));
        check(
            "http://[::1]:4318",
            Ok("http://[::1]:4318/v1development/profiles"),
        );
    }

    #[test]
    fn a_path_is_kept_and_means_http() {
        check("http://h:4317/otlp", Ok("http://h:4317/otlp"));
        check("https://h/v1/p", Ok("https://h/v1/p"));
    }

    #[test]
    fn a_query_is_sent_but_not_shown() {
        check("http://h:4318/p?key=secret", Ok("http://h:4318/p"));
        let endpoint = Endpoint::of_signal::<Profiles>("http://h:4318/p?key=secret", None).unwrap();
        assert_eq!(endpoint.uri().query(), Some("key=secret"));
    }

    #[test]
    fn signals_of_one_collector_have_paths_of_their_own() {
        for (url, expected) in [
            ("http://h:4318", "http://h:4318/v1/metrics"),
            ("http://h:4318/", "http://h:4318/v1/metrics"),
            ("https://h/otlp/", "https://h/otlp/v1/metrics"),
            ("http://h:4317", "grpc://h:4317"),
        ] {
            let endpoint = Endpoint::of_all::<Metrics>(url, None).unwrap();
            assert_eq!(endpoint.to_string(), expected);
        }
        let grpc = Endpoint::of_all::<Metrics>("http://h:9", Some(Protocol::Grpc));
        assert_eq!(grpc.unwrap().to_string(), "grpc://h:9");
        let http = Endpoint::of_all::<Metrics>("http://h:4317", Some(Protocol::Http));
        assert_eq!(http.unwrap().to_string(), "http://h:4317/v1/metrics");
        let both = Endpoint::of_all::<Metrics>("grpc://h", Some(Protocol::Http));
        assert_eq!(both, Err(BadEndpoint::UnknownProtocol));
    }

    #[test]
    fn nonsense_is_refused() {
        for url in [
            "",
            "collector",
            "collector:4317",
            "http://",
            "http://:4317",
            "http://h:",
            "http://h:99999",
            "http://h:x",
            "http://a b:1",
            "/path",
        ] {
            check(url, Err(BadEndpoint::NotAUrl));
        }
        check("ftp://h:4317", Err(BadEndpoint::UnknownScheme));
        check("http://u:p@h:4317", Err(BadEndpoint::HasCredentials));
        check("grpc://h:4317/p", Err(BadEndpoint::GrpcWithPath));
    }
}
