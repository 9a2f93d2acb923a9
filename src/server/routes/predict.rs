//! `POST /v1/predict`: labels, probabilities and the predicted labels of each text.

use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::run::records::Why;
use crate::server::answer::{ErrorBody, Refusal};
use crate::server::app::{Answer, App, Row, TooLong};
use crate::server::body;

/// Texts to classify.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PredictBody {
    /// At least one.
    #[schema(min_items = 1, example = json!(["a chess program with a graphical board"]))]
    texts: Vec<String>,
    /// The name of a model; the first one without.
    model: Option<String>,
    /// Also say which words weighed for each predicted label, or for the most likely one. For one text at a time, which
    /// takes as much work as some dozens of texts.
    #[serde(default)]
    explain: bool,
}

/// The results.
#[derive(Serialize, ToSchema)]
struct PredictAnswer<'a> {
    /// The model that answered.
    model: &'a str,
    /// One a text, in the order of the texts.
    results: Vec<Prediction<'a>>,
}

/// The result of one text.
#[derive(Serialize, ToSchema)]
pub(super) struct Prediction<'a> {
    /// All labels.
    labels: &'a [String],
    /// One probability a label, as `llmcls predict` prints them.
    probs: &'a [f32],
    /// The labels whose probability is above their threshold; of a single-label classifier the most likely.
    predicted: Vec<&'a str>,
    /// Tokens that the model saw.
    tokens: usize,
    /// True if the text was longer and its rest was not read.
    truncated: bool,
    /// One a predicted label, if `explain` is true: the words' weights in units of the logit, which with `rest` sum to
    /// `logit − baseline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    why: Option<&'a [Why]>,
}

impl<'a> Prediction<'a> {
    pub(super) fn new(answer: &'a Answer, row: &'a Row) -> Self {
        Self {
            labels: &answer.model.info.labels,
            probs: &row.scored.probabilities,
            predicted: answer.predicted(row),
            tokens: row.tokens,
            truncated: row.was_cut,
            why: row.why.as_deref(),
        }
    }
}

/// Classify texts
#[utoipa::path(
    post,
    path = "/v1/predict",
    tag = "llmcls",
    request_body = PredictBody,
    responses(
        (status = 200, description = "Results", body = PredictAnswer),
        (status = 400, description = "Not JSON", body = ErrorBody),
        (status = 404, description = "No such model", body = ErrorBody),
        (status = 413, description = "Too many texts, tokens or bytes", body = ErrorBody),
        (status = 422, description = "JSON of another form", body = ErrorBody),
        (status = 429, description = "Busy; Retry-After says when to come again", body = ErrorBody),
    )
)]
pub(super) async fn predict(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let PredictBody { texts, model, explain } = body::json(&app, request).await?;
    let answer = match explain {
        true => app.explain(model.as_deref(), texts).await?,
        false => app.classify(model.as_deref(), texts, TooLong::Cut).await?,
    };
    let results = answer.rows.iter().map(|row| Prediction::new(&answer, row)).collect();
    Ok(answer.respond(&PredictAnswer { model: &answer.model.info.name, results }))
}
