//! The paths of the HTTP server.

use super::request::Method;

/// The most bytes that `/bytes/N` returns.
pub const MAX_BYTES: u64 = 1 << 40;

/// The resource of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/`: the page for humans.
    Index,
    /// `/healthz`: for health checks.
    Health,
    /// `/metrics`: the numbers for Prometheus.
    Metrics,
    /// `/bytes/N`: N bytes of the pattern.
    Bytes(u64),
    /// `/bytes/` without a number up to [`MAX_BYTES`].
    BadBytes,
    /// `/sum`: the SHA-256 of the request's body.
    Sum,
    /// `/sink`: the length of the request's body.
    Sink,
    /// Any other path.
    Unknown,
}

impl Route {
    /// The resource of `path`, which is without a query.
    pub fn of(path: &str) -> Route {
        match path {
            "/" => Route::Index,
            "/healthz" => Route::Health,
            "/metrics" => Route::Metrics,
            "/sum" => Route::Sum,
            "/sink" => Route::Sink,
            _ => match path.strip_prefix("/bytes/") {
                Some(count) => Self::bytes(count),
                None => Route::Unknown,
            },
        }
    }

    fn bytes(count: &str) -> Route {
        let digits = count.bytes().all(|byte| byte.is_ascii_digit());
        match count.parse() {
            Ok(count) if digits && count <= MAX_BYTES => Route::Bytes(count),
            _ => Route::BadBytes,
        }
    }

    /// The methods that the path accepts, in the format of `Allow`; `None` for an unknown path.
    pub fn allow(self) -> Option<&'static str> {
        match self {
            Route::Unknown => None,
            Route::Sum | Route::Sink => Some("POST"),
            _ => Some("GET, HEAD"),
        }
    }

    /// Whether the path accepts `method`.
    pub fn takes(self, method: Method) -> bool {
        match self {
            Route::Unknown => false,
            Route::Sum | Route::Sink => method == Method::Post,
            _ => matches!(method, Method::Get | Method::Head),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_matched_completely() {
        for (path, route) in [
            ("/", Route::Index),
            ("/healthz", Route::Health),
            ("/healthz/", Route::Unknown),
            ("/Metrics", Route::Unknown),
            ("/sum", Route::Sum),
            ("/sink", Route::Sink),
            ("/bytes", Route::Unknown),
            ("/bytes/0", Route::Bytes(0)),
            ("/bytes/1099511627776", Route::Bytes(MAX_BYTES)),
            ("/bytes/1099511627777", Route::BadBytes),
            ("/bytes/99999999999999999999999", Route::BadBytes),
            ("/bytes/", Route::BadBytes),
            ("/bytes/-1", Route::BadBytes),
            ("/bytes/+1", Route::BadBytes),
            ("/bytes/1/", Route::BadBytes),
            ("*", Route::Unknown),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }

    #[test]
    fn a_path_accepts_the_methods_that_it_allows() {
        for route in
            [Route::Index, Route::Health, Route::Metrics, Route::Bytes(1), Route::Sum, Route::Sink]
        {
            for (method, name) in
                [(Method::Get, "GET"), (Method::Head, "HEAD"), (Method::Post, "POST")]
            {
                let allowed = route.allow().unwrap().split(", ").any(|allowed| allowed == name);
                assert_eq!(route.takes(method), allowed, "{route:?} {name}");
            }
        }
    }
}
