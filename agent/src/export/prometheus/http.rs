//! The answers of the scrape endpoint: `GET` and `HEAD` of `/metrics` and `/healthz`.

use std::convert::Infallible;
use std::io::Write;
use std::time::Duration;

use flate2::{Compression, write::GzEncoder};
use http::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, VARY,
    },
};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::Format;

/// A client that does not say what it wants in this time is let go.
const HEADER_PATIENCE: Duration = Duration::from_secs(10);

/// Nobody needs longer for a page; a client that reads slower is let go.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(120);

/// Headers of a request that are more are refused.
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Makes the page in a format.
pub trait Page {
    /// The page as it is now.
    fn page(&self, format: Format) -> String;
}

/// Serves one connection until its end, or until it has lasted too long.
pub async fn serve(stream: TcpStream, page: &impl Page) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let response = answer(
            request.method(),
            request.uri().path(),
            request.headers(),
            page,
        );
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away, or talks nonsense, is its own affair.
    let _ = tokio::time::timeout(CONNECTION_PATIENCE, connection).await;
}

/// The answer to one request.
pub fn answer(
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    page: &impl Page,
) -> Response<Full<Bytes>> {
    let is_head = method == Method::HEAD;
    let mut response = match path {
        "/metrics" | "/healthz" if !is_head && method != Method::GET => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response.headers_mut().insert(ALLOW, header("GET, HEAD"));
            response
        }
        "/metrics" => metrics(headers, page),
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n"),
    };
    if is_head {
        *response.body_mut() = Full::default();
    }
    response
}

fn metrics(headers: &HeaderMap, page: &impl Page) -> Response<Full<Bytes>> {
    let text = |name| {
        let values = headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok());
        values.collect::<Vec<_>>().join(",")
    };
    let format = Format::negotiate(&text(ACCEPT));
    let mut body = page.page(format).into_bytes();
    let has_gzip = accepts_gzip(&text(ACCEPT_ENCODING));
    if has_gzip {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        if encoder.write_all(&body).is_ok() {
            body = encoder.finish().expect("a vector takes all bytes");
        }
    }
    let mut response = with_body(StatusCode::OK, format.content_type(), body);
    response
        .headers_mut()
        .insert(VARY, header("Accept, Accept-Encoding"));
    if has_gzip {
        response
            .headers_mut()
            .insert(CONTENT_ENCODING, header("gzip"));
    }
    response
}

fn accepts_gzip(accepted: &str) -> bool {
    accepted.split(',').any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let quality = parameters.trim().strip_prefix("q=");
        let is_wanted = quality.is_none_or(|q| q.parse::<f64>().is_ok_and(|q| q > 0.0));
        name.trim().eq_ignore_ascii_case("gzip") && is_wanted
    })
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    with_body(
        status,
        "text/plain; charset=utf-8",
        text.as_bytes().to_vec(),
    )
}

fn with_body(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let length = body.len().into();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, header(kind));
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}

fn header(text: &'static str) -> http::HeaderValue {
    http::HeaderValue::from_static(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    struct Fixed;

    impl Page for Fixed {
        fn page(&self, format: Format) -> String {
            format!("{format:?}")
        }
    }

    fn ask(
        method: Method,
        path: &str,
        headers: &[(http::HeaderName, &str)],
    ) -> Response<Full<Bytes>> {
        let headers = headers
            .iter()
            .map(|(key, value)| (key.clone(), value.parse().unwrap()));
        answer(&method, path, &headers.collect(), &Fixed)
    }

    async fn body(response: Response<Full<Bytes>>) -> Vec<u8> {
        use http_body_util::BodyExt;
        response
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .to_vec()
    }

    #[tokio::test]
    async fn the_page_comes_as_asked_for() {
        let response = ask(Method::GET, "/metrics", &[]);
        assert_eq!(
            response.headers()[CONTENT_TYPE],
            Format::Classic.content_type()
        );
        assert_eq!(body(response).await, b"Classic");
        let wanted = [
            (ACCEPT, "application/openmetrics-text"),
            (ACCEPT_ENCODING, "deflate, gzip;q=0.5"),
        ];
        let response = ask(Method::GET, "/metrics", &wanted);
        assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
        let mut text = String::new();
        let packed = body(response).await;
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "OpenMetrics");
        assert!(!accepts_gzip("gzip;q=0, br"));
        assert!(!accepts_gzip(""));
    }

    #[tokio::test]
    async fn other_requests_are_told_so() {
        for (method, path, status) in [
            (Method::GET, "/healthz", 200),
            (Method::POST, "/metrics", 405),
            (Method::DELETE, "/healthz", 405),
            (Method::GET, "/", 404),
            (Method::POST, "/x", 404),
        ] {
            assert_eq!(ask(method, path, &[]).status(), status, "{path}");
        }
        let head = ask(Method::HEAD, "/metrics", &[]);
        assert_eq!(head.headers()[CONTENT_LENGTH], "7");
        assert!(body(head).await.is_empty());
    }
}
