//! KServe's Open Inference Protocol, version 2, over REST.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::info;
use crate::server::answer::{ErrorBody, Refusal};
use crate::server::app::{Answer, App, TooLong};
use crate::server::body;

/// A request.
#[derive(Deserialize, ToSchema)]
pub(super) struct InferBody {
    /// Comes back in the answer.
    id: Option<String>,
    /// One tensor of texts.
    inputs: Vec<InputTensor>,
    /// The tensors that are wanted; all without.
    outputs: Option<Vec<WantedTensor>>,
}

/// Texts.
#[derive(Deserialize, ToSchema)]
struct InputTensor {
    /// Any.
    #[schema(example = "text")]
    name: String,
    /// `[n]` or `[n, 1]`
    #[schema(example = json!([1]))]
    shape: Vec<u64>,
    /// `BYTES`
    #[schema(example = "BYTES")]
    datatype: String,
    /// Strings, flat or nested as the shape says.
    #[schema(value_type = Vec<String>, example = json!(["a chess program"]))]
    data: Vec<Value>,
}

/// A tensor that is wanted.
#[derive(Deserialize, ToSchema)]
struct WantedTensor {
    /// `probs`, `predicted`, `tokens` or `truncated`
    name: String,
}

/// An answer.
#[derive(Serialize, ToSchema)]
struct InferAnswer<'a> {
    model_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    outputs: Vec<OutputTensor>,
}

/// A tensor, row by row.
#[derive(Serialize, ToSchema)]
struct OutputTensor {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<usize>,
    data: Numbers,
}

/// The numbers of a tensor.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Numbers {
    Floats(Vec<f32>),
    Flags(Vec<bool>),
    Counts(Vec<usize>),
}

/// The tensors of an answer: their names and types, and whether they have a column a label.
const OUTPUTS: [(&str, &str, bool); 4] =
    [("probs", "FP32", true), ("predicted", "BOOL", true), ("tokens", "INT32", false), ("truncated", "BOOL", false)];

impl OutputTensor {
    fn of(answer: &Answer, (name, datatype, is_of_labels): (&'static str, &'static str, bool)) -> Self {
        let rows = &answer.rows;
        let data = match name {
            "probs" => Numbers::Floats(rows.iter().flat_map(|row| row.scored.probabilities.iter().copied()).collect()),
            "predicted" => {
                Numbers::Flags(rows.iter().flat_map(|row| answer.model.decide(&row.scored.probabilities)).collect())
            }
            "tokens" => Numbers::Counts(rows.iter().map(|row| row.tokens).collect()),
            _ => Numbers::Flags(rows.iter().map(|row| row.was_cut).collect()),
        };
        let mut shape = vec![rows.len()];
        shape.extend(is_of_labels.then_some(answer.model.info.labels.len()));
        Self { name, datatype, shape, data }
    }
}

impl InputTensor {
    /// The texts.
    fn texts(self) -> Result<Vec<String>, Refusal> {
        let Self { name, shape, datatype, data } = self;
        if datatype != "BYTES" {
            return Err(Refusal::invalid(format!("inputs: `{name}` is of {datatype}, expected BYTES")));
        }
        if !matches!(*shape, [_] | [_, 1]) {
            return Err(Refusal::invalid(format!("inputs: `{name}` has the shape {shape:?}, expected [n] or [n, 1]")));
        }
        let mut texts = Vec::with_capacity(data.len());
        flatten(data, &mut texts)
            .map_err(|()| Refusal::invalid(format!("inputs: `{name}` has data beside strings")))?;
        if shape[0] != texts.len() as u64 {
            return Err(Refusal::invalid(format!(
                "inputs: `{name}` has the shape {shape:?} and {} strings",
                texts.len()
            )));
        }
        Ok(texts)
    }
}

fn flatten(values: Vec<Value>, texts: &mut Vec<String>) -> Result<(), ()> {
    for value in values {
        match value {
            Value::String(text) => texts.push(text),
            Value::Array(values) => flatten(values, texts)?,
            _ => return Err(()),
        }
    }
    Ok(())
}

/// Classify texts, by KServe's protocol
#[utoipa::path(
    post,
    path = "/v2/models/{name}/infer",
    tag = "KServe",
    params(("name" = String, Path, description = "The name of a model")),
    request_body = InferBody,
    responses(
        (status = 200, description = "Tensors", body = InferAnswer),
        (status = 404, description = "No such model", body = ErrorBody),
        (status = 413, description = "Too many", body = ErrorBody),
        (status = 422, description = "JSON of another form", body = ErrorBody),
        (status = 429, description = "Busy", body = ErrorBody),
    )
)]
pub(super) async fn infer(
    State(app): State<App>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    if request.headers().contains_key("inference-header-content-length") {
        return Err(Refusal::media_type("the binary extension is not supported; send the tensors as JSON"));
    }
    let InferBody { id, inputs, outputs } = body::json(&app, request).await?;
    let inputs = <[InputTensor; 1]>::try_from(inputs)
        .map_err(|inputs| Refusal::invalid(format!("inputs: {} tensors, expected one of texts", inputs.len())))?;
    let wanted = wanted(outputs)?;
    let [input] = inputs;
    let answer = app.classify(Some(&name), input.texts()?, TooLong::Cut).await?;
    let outputs = wanted.into_iter().map(|output| OutputTensor::of(&answer, output)).collect();
    Ok(answer.respond(&InferAnswer { model_name: &answer.model.info.name, id, outputs }))
}

fn wanted(outputs: Option<Vec<WantedTensor>>) -> Result<Vec<(&'static str, &'static str, bool)>, Refusal> {
    let Some(outputs) = outputs.filter(|outputs| !outputs.is_empty()) else { return Ok(OUTPUTS.to_vec()) };
    let find = |wanted: WantedTensor| {
        let found = OUTPUTS.into_iter().find(|(name, ..)| *name == wanted.name);
        found.ok_or_else(|| {
            let names = OUTPUTS.map(|(name, ..)| name).join(", ");
            Refusal::invalid(format!("outputs: there is no tensor `{}`; there are {names}", wanted.name))
        })
    };
    outputs.into_iter().map(find).collect()
}

/// The server's name and version
#[utoipa::path(get, path = "/v2", tag = "KServe", responses((status = 200, description = "The server")))]
pub(super) async fn server() -> Json<Value> {
    Json(json!({"name": "llmcls", "version": env!("LLMCLS_VERSION"), "extensions": []}))
}

/// Tell if the server runs
#[utoipa::path(get, path = "/v2/health/live", tag = "KServe", responses((status = 200, description = "It runs")))]
pub(super) async fn live() -> Json<Value> {
    Json(json!({"live": true}))
}

/// Tell if all models are ready
#[utoipa::path(
    get,
    path = "/v2/health/ready",
    tag = "KServe",
    responses((status = 200, description = "Ready"), (status = 503, description = "Loading, or ending"))
)]
pub(super) async fn ready(State(app): State<App>) -> Result<Json<Value>, Refusal> {
    info::ready(&app).map(|()| Json(json!({"live": true, "ready": true})))
}

/// A model's tensors, labels and thresholds
#[utoipa::path(
    get,
    path = "/v2/models/{name}",
    tag = "KServe",
    params(("name" = String, Path, description = "The name of a model")),
    responses((status = 200, description = "The model"), (status = 404, description = "No such model", body = ErrorBody))
)]
pub(super) async fn model(State(app): State<App>, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    let model = app.model(Some(&name))?;
    let labels = model.info.labels.len();
    let outputs = OUTPUTS.map(|(name, datatype, is_of_labels)| {
        let shape = if is_of_labels { json!([-1, labels]) } else { json!([-1]) };
        json!({"name": name, "datatype": datatype, "shape": shape})
    });
    Ok(Json(json!({
        "name": model.info.name,
        "platform": "llmcls",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": outputs,
        "parameters": {"labels": model.info.labels, "thresholds": model.info.thresholds},
    })))
}

/// Tell if a model is ready
#[utoipa::path(
    get,
    path = "/v2/models/{name}/ready",
    tag = "KServe",
    params(("name" = String, Path, description = "The name of a model")),
    responses((status = 200, description = "Ready"), (status = 404, description = "No such model", body = ErrorBody))
)]
pub(super) async fn model_ready(State(app): State<App>, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    app.model(Some(&name)).map(|model| Json(json!({"name": model.info.name, "ready": true})))
}
