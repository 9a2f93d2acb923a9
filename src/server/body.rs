//! Reads bodies: whole, within the limits, in time.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::answer::Refusal;
use super::app::App;

/// The essence of a media type, without its parameters, in lower case.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Reads a JSON body. Other media types are refused: a web page of another origin can send plain text without asking.
pub(super) async fn json<T: DeserializeOwned>(app: &App, request: Request) -> Result<T, Refusal> {
    let given = media_type(request.headers());
    if given != "application/json" {
        return Err(Refusal::media_type(format!("the body's Content-Type is `{given}`; send application/json")));
    }
    parse(&bytes(app, request).await?)
}

/// Parses JSON: 400 for what is no JSON, 422 for JSON of another form.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Refusal::invalid(error.to_string()),
        _ => Refusal::malformed(format!("the body is not JSON: {error}")),
    })
}

/// Reads a body.
pub(super) async fn bytes(app: &App, request: Request) -> Result<Vec<u8>, Refusal> {
    let limits = &app.0.limits;
    let most = limits.body_bytes;
    let too_large = || Refusal::too_large(format!("the body has more than {most} bytes; send several requests"));
    let headers = request.headers();
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(Refusal::media_type("the body has a Content-Encoding; send it as it is"));
    }
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > most) {
        return Err(too_large());
    }
    let mut buffered = app.buffered();
    let mut body: Body = request.into_body();
    let mut data = Vec::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Refusal::malformed("the body ended too soon"))?;
            let Ok(part) = frame.into_data() else { continue };
            if data.len() + part.len() > most {
                return Err(too_large());
            }
            if !buffered.add(part.len()) {
                return Err(Refusal::busy("too many requests are being sent at once", 1));
            }
            data.extend_from_slice(&part);
        }
        Ok(())
    };
    match timeout(limits.read_timeout, read).await {
        Ok(read) => read.map(|()| data),
        Err(_) => {
            Err(Refusal::slow(format!("the body did not come within {} seconds", limits.read_timeout.as_secs_f64())))
        }
    }
}
