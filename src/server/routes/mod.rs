//! The routes: ours, and the forms of other servers.

mod admin;
mod classify;
mod infer;
mod info;
mod invocations;
mod page;
mod predict;
mod tei;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Response, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{delete, get, post, put};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;

use super::answer::{ErrorBody, Refusal};
use super::app::App;
use super::guard::{self, Door};

/// The routes for everyone.
pub(super) fn router(door: Door) -> Router {
    let routes = Router::new()
        .route("/", get(page::html))
        .route("/page.js", get(page::script))
        .route("/page.css", get(page::style))
        .route("/health", get(info::health))
        .route("/info", get(info::info))
        .route("/metrics", get(info::metrics))
        .route("/openapi.json", get(openapi))
        .route("/predict", post(tei::predict))
        .route("/v1/predict", post(predict::predict))
        .route("/classify", post(classify::classify))
        .route("/v1/models", get(classify::models))
        .route("/ping", get(info::ping))
        .route("/invocations", post(invocations::invocations))
        .route("/v2", get(infer::server))
        .route("/v2/health/live", get(infer::live))
        .route("/v2/health/ready", get(infer::ready))
        .route("/v2/models/{name}", get(infer::model))
        .route("/v2/models/{name}/ready", get(infer::model_ready))
        .route("/v2/models/{name}/infer", post(infer::infer));
    guarded(routes, door)
}

/// The routes for whoever runs the server.
pub(super) fn admin_router(door: Door) -> Router {
    let routes = Router::new()
        .route("/models", get(admin::list))
        .route("/models/{name}", put(admin::load))
        .route("/models/{name}", delete(admin::remove));
    guarded(routes, door)
}

fn guarded(routes: Router<App>, door: Door) -> Router {
    let app = door.app.clone();
    routes
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(|_| -> Response<Body> {
            Refusal::failed("a panic; this is a bug in llmcls, please report it").into_response()
        }))
        .layer(from_fn_with_state(door, guard::admit))
        .layer(from_fn_with_state(app.clone(), guard::observe))
        .with_state(app)
}

async fn unknown() -> Refusal {
    Refusal::not_found("there is no such route; /openapi.json lists the routes")
}

async fn wrong_method(request: Request) -> Refusal {
    let message = format!("the route does not take {}; /openapi.json lists the routes", request.method());
    Refusal { status: StatusCode::METHOD_NOT_ALLOWED, ..Refusal::not_found(message) }
}

#[derive(OpenApi)]
#[openapi(
    info(title = "llmcls", description = "Multi-label text classification"),
    paths(
        predict::predict,
        tei::predict,
        classify::classify,
        classify::models,
        infer::server,
        infer::live,
        infer::ready,
        infer::model,
        infer::model_ready,
        infer::infer,
        info::ping,
        invocations::invocations,
        info::health,
        info::info,
        info::metrics
    ),
    components(schemas(ErrorBody))
)]
struct Description;

async fn openapi() -> axum::Json<utoipa::openapi::OpenApi> {
    let mut description = Description::openapi();
    description.info.version = env!("LLMCLS_VERSION").to_owned();
    axum::Json(description)
}
