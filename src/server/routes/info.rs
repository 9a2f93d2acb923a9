//! Facts about the server.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use crate::server::answer::Refusal;
use crate::server::app::App;
use crate::server::models::ModelInfo;

/// The name of the model.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ModelQuery {
    /// The name of a model; the first one without.
    pub(super) model: Option<String>,
}

/// The models and the limits.
#[derive(Serialize, ToSchema)]
struct Info {
    version: &'static str,
    /// The first one answers requests that name none.
    models: Vec<ModelInfo>,
    limits: InfoLimits,
}

/// The limits.
#[derive(Serialize, ToSchema)]
struct InfoLimits {
    texts_per_request: usize,
    tokens_per_request: usize,
    bytes_per_request: usize,
    queue_texts: usize,
    batch_tokens: usize,
}

/// Tell if the server takes requests
#[utoipa::path(
    get,
    path = "/health",
    tag = "llmcls",
    responses((status = 200, description = "Ready"), (status = 503, description = "Loading, or ending"))
)]
pub(super) async fn health(State(app): State<App>) -> Result<Json<Value>, Refusal> {
    ready(&app).map(|()| Json(json!({"status": "ready"})))
}

/// Tell if the server takes requests, for SageMaker
#[utoipa::path(
    get,
    path = "/ping",
    tag = "SageMaker",
    responses((status = 200, description = "Ready"), (status = 503, description = "Loading, or ending"))
)]
pub(super) async fn ping(State(app): State<App>) -> Result<StatusCode, Refusal> {
    ready(&app).map(|()| StatusCode::OK)
}

pub(super) fn ready(app: &App) -> Result<(), Refusal> {
    if app.0.models.is_ready() { Ok(()) } else { Err(Refusal::not_ready()) }
}

/// Models, labels, thresholds, bases and limits
#[utoipa::path(get, path = "/info", tag = "llmcls", responses((status = 200, description = "Models", body = Info)))]
pub(super) async fn info(State(app): State<App>) -> Response {
    let limits = &app.0.limits;
    Json(Info {
        version: env!("LLMCLS_VERSION"),
        models: app.0.models.all().iter().map(|served| served.info.clone()).collect(),
        limits: InfoLimits {
            texts_per_request: limits.texts,
            tokens_per_request: limits.tokens,
            bytes_per_request: limits.body_bytes,
            queue_texts: limits.queue,
            batch_tokens: limits.batch_tokens,
        },
    })
    .into_response()
}

/// Numbers for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "llmcls", responses((status = 200, description = "OpenMetrics text")))]
pub(super) async fn metrics(State(app): State<App>) -> Response {
    let text = app.0.metrics.text(&app.0.room);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}
