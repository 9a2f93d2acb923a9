//! Routes for whoever runs the server, on an address of their own: classifiers come and go.

use std::path::PathBuf;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::server::answer::Refusal;
use crate::server::app::App;
use crate::server::body;
use crate::server::models::ModelInfo;

/// A classifier to load.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadBody {
    /// A run, a seed's directory, or a directory that peft saved.
    run: PathBuf,
}

pub(super) async fn list(State(app): State<App>) -> Json<Value> {
    let models: Vec<ModelInfo> = app.0.models.all().iter().map(|served| served.info.clone()).collect();
    Json(json!({"models": models}))
}

/// Loads a classifier under a name, in place of the one that has it.
pub(super) async fn load(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Json<ModelInfo>, Refusal> {
    let LoadBody { run } = body::json(&app, request).await?;
    let shared = app.clone();
    let work = move || shared.0.models.load(&name, &run);
    let loaded = spawn_blocking(work).await.map_err(|_| Refusal::failed("loading has panicked"))?;
    loaded.map(Json).map_err(|error| Refusal::invalid(format!("{error:#}")))
}

/// Drops a classifier.
pub(super) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, Refusal> {
    let (shared, dropped) = (app.clone(), name.clone());
    let work = move || shared.0.models.remove(&dropped);
    match spawn_blocking(work).await {
        Ok(true) => Ok(StatusCode::NO_CONTENT),
        Ok(false) => Err(Refusal::not_found(format!("there is no model `{name}`"))),
        Err(_) => Err(Refusal::failed("dropping has panicked")),
    }
}
