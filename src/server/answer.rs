//! Answers that are errors, and the facts of a request that its log line tells.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

/// Why a request has no result.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// For metrics and clients: one word.
    pub(super) kind: &'static str,
    /// The error, and the way out.
    pub(super) message: String,
    /// Seconds after which to come again.
    pub(super) retry_after: Option<u64>,
    /// True if the error has OpenAI's form.
    pub(super) nested: bool,
}

/// The body of an answer that is an error.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// The error, and the way out.
    #[schema(example = "the request has 300 texts, and 256 are taken at once; send several requests")]
    error: String,
    /// One word.
    #[schema(example = "too_large")]
    error_type: String,
}

/// Facts about a request for a log line and the metrics.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) kind: Option<&'static str>,
    pub(super) model: Option<String>,
    pub(super) texts: usize,
    pub(super) tokens: usize,
    /// The texts, if they may be logged.
    pub(super) logged_texts: Vec<String>,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), retry_after: None, nested: false }
    }

    /// The body is not JSON.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message)
    }

    /// The body is JSON, but not what the route takes.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message)
    }

    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(super) fn media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", message)
    }

    pub(super) fn slow(message: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "slow", message)
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub(super) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    pub(super) fn busy(message: impl Into<String>, retry_after: u64) -> Self {
        let busy = Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", message);
        Self { retry_after: Some(retry_after), ..busy }
    }

    pub(super) fn not_ready() -> Self {
        let loading = Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "the models are not ready");
        Self { retry_after: Some(1), ..loading }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", message)
    }

    /// The same in the form of OpenAI's errors, which vLLM has.
    pub(super) fn nested(self) -> Self {
        Self { nested: true, ..self }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = if self.nested {
            json!({"error": {"message": self.message, "type": self.kind, "param": null, "code": self.status.as_u16()}})
        } else {
            json!(ErrorBody { error: self.message, error_type: self.kind.to_owned() })
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Facts { kind: Some(self.kind), ..Facts::default() });
        response
    }
}
