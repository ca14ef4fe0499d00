//! Where to send, as the user writes it.

use std::fmt;

use http::{
    Uri,
    uri::{PathAndQuery, Scheme},
};

/// Where OTLP/HTTP takes profiles.
const HTTP_PATH: &str = "/v1development/profiles";

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
    /// `grpc://host/path`.
    #[error("a collector's gRPC address takes no path: leave out what follows the port")]
    GrpcWithPath,
}

impl Endpoint {
    /// Parses a URL. The scheme `grpc` or `grpcs` means gRPC, as does port 4317 without a path;
    /// anything else is HTTP, to the URL's path or `/v1development/profiles` when it has none.
    ///
    /// # Errors
    /// [`BadEndpoint`] when it is none.
    pub fn parse(url: &str) -> Result<Self, BadEndpoint> {
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
        let protocol = if is_grpc || (port == Some(GRPC_PORT) && !has_path) {
            if has_path {
                return Err(BadEndpoint::GrpcWithPath);
            }
            if port.is_none() {
                parts.authority = format!("{authority}:{GRPC_PORT}").parse().ok();
            }
            parts.path_and_query = Some(PathAndQuery::from_static("/"));
            Protocol::Grpc
        } else {
            if !has_path {
                parts.path_and_query = Some(PathAndQuery::from_static(HTTP_PATH));
            }
            Protocol::Http
        };
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

    fn check(url: &str, expected: Result<&str, BadEndpoint>) {
        let shown = Endpoint::parse(url).map(|endpoint| endpoint.to_string());
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
        let endpoint = Endpoint::parse("http://h:4318/p?key=secret").unwrap();
        assert_eq!(endpoint.uri().query(), Some("key=secret"));
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
