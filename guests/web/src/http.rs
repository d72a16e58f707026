//! Requests and the heads of responses.
//!
//! Source: RFC 9112 (HTTP/1.1), RFC 9110 (semantics).

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;

/// Most bytes of a request's head.
pub const MAX_HEAD: usize = 4096;
/// Most header fields of a request.
const MAX_FIELDS: usize = 48;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The path, without the query.
    pub path: String,
    /// The head of the response alone is wanted (`HEAD`).
    pub head_only: bool,
    /// The client may send further requests on this connection.
    pub keep_alive: bool,
}

/// What has come of a request so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// The head is not complete.
    More,
    /// A whole request, and the bytes that it took.
    Request(Request, usize),
    /// The request cannot be served: the answer's status. The connection ends after the answer.
    Refused(Status),
}

/// The status of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200.
    Ok,
    /// 400: no HTTP, or against its rules.
    BadRequest,
    /// 404.
    NotFound,
    /// 405: neither `GET` nor `HEAD`.
    MethodNotAllowed,
    /// 408: the head took too long.
    Timeout,
    /// 413: a request with a body.
    ContentTooLarge,
    /// 431: the head is too long, or has too many fields.
    FieldsTooLarge,
    /// 505: neither HTTP/1.0 nor HTTP/1.1.
    Version,
}

impl Status {
    /// Number and reason, as the status line has them.
    pub fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::Timeout => "408 Request Timeout",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::FieldsTooLarge => "431 Request Header Fields Too Large",
            Self::Version => "505 HTTP Version Not Supported",
        }
    }
}

/// Reads the request with which `bytes` begins.
pub fn read(bytes: &[u8]) -> Read {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let taken = match request.parse(bytes) {
        Ok(httparse::Status::Complete(taken)) if taken > MAX_HEAD => {
            return Read::Refused(Status::FieldsTooLarge);
        }
        Ok(httparse::Status::Complete(taken)) => taken,
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD => {
            return Read::Refused(Status::FieldsTooLarge);
        }
        Ok(httparse::Status::Partial) => return Read::More,
        Err(httparse::Error::TooManyHeaders) => return Read::Refused(Status::FieldsTooLarge),
        Err(httparse::Error::Version) => return Read::Refused(Status::Version),
        Err(_) => return Read::Refused(Status::BadRequest),
    };
    match accept(&request) {
        Ok(request) => Read::Request(request, taken),
        Err(status) => Read::Refused(status),
    }
}

fn accept(request: &httparse::Request<'_, '_>) -> Result<Request, Status> {
    let head_only = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(Status::MethodNotAllowed),
    };
    let mut hosts = 0;
    let newer = request.version == Some(1);
    let mut keep_alive = newer;
    for field in request.headers.iter() {
        let value = field.value.trim_ascii();
        if field.name.eq_ignore_ascii_case("connection") {
            for word in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if word.eq_ignore_ascii_case(b"close") {
                    keep_alive = false;
                } else if word.eq_ignore_ascii_case(b"keep-alive") && !newer {
                    keep_alive = true;
                }
            }
        } else if field.name.eq_ignore_ascii_case("host") {
            hosts += 1;
        } else if field.name.eq_ignore_ascii_case("transfer-encoding")
            || field.name.eq_ignore_ascii_case("content-length") && value != b"0"
        {
            // Where a body ends decides where the next request begins, so a body is refused rather than guessed at.
            return Err(Status::ContentTooLarge);
        }
    }
    if newer && hosts != 1 {
        return Err(Status::BadRequest);
    }
    let target = request.path.unwrap_or("/");
    // A proxy's form of a target names the host, too.
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let path = path.split(['?', '#']).next().unwrap_or("/");
    if !path.starts_with('/') {
        return Err(Status::BadRequest);
    }
    Ok(Request { path: path.to_string(), head_only, keep_alive })
}

/// The head of a response whose body has `len` bytes.
pub fn head(status: Status, kind: &str, len: u64, keep_alive: bool) -> Vec<u8> {
    let mut head = String::with_capacity(192);
    let connection = if keep_alive { "keep-alive" } else { "close" };
    // Writing to a string does not fail.
    let _ = write!(
        head,
        "HTTP/1.1 {}\r\nServer: microhv-web\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: {connection}\r\n\
         Cache-Control: no-store\r\n",
        status.line(),
    );
    if status == Status::MethodNotAllowed {
        head.push_str("Allow: GET, HEAD\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(text: &str) -> Read {
        read(text.as_bytes())
    }

    fn path_of(target: &str) -> String {
        match request(&alloc::format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")) {
            Read::Request(request, _) => request.path,
            other => alloc::format!("{other:?}"),
        }
    }

    #[test]
    fn usual_requests() {
        let text = "GET /status.json?x=1 HTTP/1.1\r\nHost: x\r\n\r\n";
        let expected = Request { path: "/status.json".into(), head_only: false, keep_alive: true };
        assert_eq!(request(text), Read::Request(expected.clone(), text.len()));
        // The next request follows at once.
        let two = alloc::format!("{text}{text}");
        assert_eq!(request(&two), Read::Request(expected, text.len()));
        for cut in 0..text.len() {
            assert_eq!(request(&text[..cut]), Read::More, "{cut}");
        }
        assert_eq!(path_of("/"), "/");
        assert_eq!(path_of("http://web/a?b"), "/a");
        assert_eq!(path_of("http://web"), "/");
        assert_eq!(path_of("*"), "Refused(BadRequest)");
    }

    #[test]
    fn the_connection_goes_on_as_the_client_says() {
        for (version, field, expected) in [
            ("1.1", "X: y", true),
            ("1.1", "Connection: close", false),
            ("1.1", "connection: Upgrade, CLOSE", false),
            ("1.1", "Connection: keep-alive", true),
            ("1.0", "X: y", false),
            ("1.0", "Connection: Keep-Alive", true),
        ] {
            let text = alloc::format!("HEAD / HTTP/{version}\r\nHost: x\r\n{field}\r\n\r\n");
            let Read::Request(request, _) = request(&text) else { panic!("{text}") };
            assert_eq!((request.keep_alive, request.head_only), (expected, true), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_served_says_why() {
        let long = alloc::format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX_HEAD));
        let whole = alloc::format!("{long}Host: x\r\n\r\n");
        let many = alloc::format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_FIELDS + 1));
        for (text, status) in [
            ("POST / HTTP/1.1\r\nHost: x\r\n\r\n", Status::MethodNotAllowed),
            ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", Status::ContentTooLarge),
            ("GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", Status::ContentTooLarge),
            ("GET / HTTP/1.1\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", Status::Version),
            ("\x16\x03\x01\x02\x00", Status::BadRequest),
            (&long, Status::FieldsTooLarge),
            (&whole, Status::FieldsTooLarge),
            (&many, Status::FieldsTooLarge),
        ] {
            assert_eq!(request(text), Read::Refused(status), "{text:?}");
        }
        let text = "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        assert!(matches!(request(text), Read::Request(..)));
    }

    #[test]
    fn heads_are_whole() {
        let head = head(Status::MethodNotAllowed, "text/plain", 5, false);
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut fields);
        assert_eq!(response.parse(&head), Ok(httparse::Status::Complete(head.len())));
        assert_eq!((response.code, response.reason), (Some(405), Some("Method Not Allowed")));
        let field =
            |name: &str| response.headers.iter().find(|field| field.name == name).map(|field| field.value);
        assert_eq!(field("Content-Length"), Some(&b"5"[..]));
        assert_eq!(field("Connection"), Some(&b"close"[..]));
        assert_eq!(field("Allow"), Some(&b"GET, HEAD"[..]));
    }

    proptest! {
        /// Any bytes give an answer, and what is not complete stays below the limit.
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2 * MAX_HEAD)) {
            match read(&bytes) {
                Read::More => prop_assert!(bytes.len() < MAX_HEAD),
                Read::Request(request, taken) => {
                    prop_assert!(taken <= bytes.len() && request.path.starts_with('/'));
                }
                Read::Refused(_) => {}
            }
        }
    }
}
