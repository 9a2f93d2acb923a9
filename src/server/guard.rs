//! Checks of every request: its log line, its numbers, its key and its origin.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::{Facts, Refusal};
use super::app::App;

/// The routes of health.
const HEALTH: [&str; 5] = ["/health", "/ping", "/v2/health/live", "/v2/health/ready", "/v2/models/{name}/ready"];
/// The page and the description of the routes: they hold nothing of a model.
const PUBLIC: [&str; 4] = ["/", "/page.js", "/page.css", "/openapi.json"];

/// Counts and logs a request.
pub(super) async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let method = request.method().clone();
    let route = route_of(&request).unwrap_or("other").to_owned();
    let mut response = next.run(request).await;
    let facts = response.extensions_mut().remove::<Facts>().unwrap_or_default();
    let (status, took) = (response.status().as_u16(), begin.elapsed());
    app.0.metrics.request(&route, status, took);
    if let Some(kind) = facts.kind {
        app.0.metrics.failure(kind);
    }
    app.0.log.request(method.as_str(), &route, status, took, &facts);
    response
}

/// An address that requests come to.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) app: App,
    /// Whether only this machine can reach it.
    pub(super) is_local: bool,
}

/// Refuses requests that name a foreign host, lack the key, or come from a page that may not ask.
pub(super) async fn admit(State(door): State<Door>, request: Request, next: Next) -> Response {
    let Door { app, .. } = &door;
    if let Err(refusal) = check_host(&door, request.headers(), request.uri().host()) {
        return refusal.into_response();
    }
    let origin = allowed_origin(app, request.headers());
    if request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        && let Some(origin) = origin
    {
        return preflight(origin);
    }
    let mut response = match check_key(app, &request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

fn route_of(request: &Request) -> Option<&str> {
    request.extensions().get::<MatchedPath>().map(MatchedPath::as_str)
}

/// Where only this machine can reach the server, a request for another name comes from a page whose name was made to
/// lead here (DNS rebinding).
fn check_host(door: &Door, headers: &HeaderMap, of_uri: Option<&str>) -> Result<(), Refusal> {
    let access = &door.app.0.access;
    if !door.is_local && access.hosts.is_empty() {
        return Ok(());
    }
    let given = headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
    for given in [given, of_uri].into_iter().flatten() {
        let name = without_port(given).to_ascii_lowercase();
        let is_own = door.is_local && ["localhost", "127.0.0.1", "[::1]"].contains(&name.as_str());
        if !is_own && !access.hosts.iter().any(|host| host.eq_ignore_ascii_case(&name)) {
            return Err(Refusal::forbidden(
                "the Host is not one of this server; --allow_host NAME lets requests name another",
            ));
        }
    }
    Ok(())
}

/// `name:8080`, `[::1]:8080`
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn check_key(app: &App, request: &Request) -> Result<(), Refusal> {
    let access = &app.0.access;
    if access.keys.is_empty() {
        return Ok(());
    }
    let route = route_of(request).unwrap_or_default();
    let is_open = PUBLIC.contains(&route)
        || HEALTH.contains(&route) && !access.closes_health
        || route == "/metrics" && access.opens_metrics;
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = given.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    if is_open || key.is_some_and(|key| access.keys.accept(key)) {
        return Ok(());
    }
    Err(Refusal::unauthorized("the request needs a key: Authorization: Bearer KEY"))
}

fn allowed_origin(app: &App, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    app.0.access.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}

fn preflight(origin: HeaderValue) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization, content-type"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    response
}

#[cfg(test)]
mod tests {
    use super::without_port;

    #[test]
    fn a_port_is_no_part_of_a_name() {
        for (host, name) in
            [("localhost:8080", "localhost"), ("localhost", "localhost"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]")]
        {
            assert_eq!(without_port(host), name);
        }
    }
}
