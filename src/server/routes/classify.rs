//! `POST /classify` in the form of vLLM.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::server::answer::{ErrorBody, Refusal};
use crate::server::app::{Answer, App, Row, TooLong};
use crate::server::body;

/// Texts to classify.
#[derive(Deserialize, ToSchema)]
pub(super) struct ClassifyBody {
    /// The name of a model; the first one without.
    model: Option<String>,
    input: Option<ClassifyInput>,
    /// -1 has a text that is too long cut; without it the request is refused.
    truncate_prompt_tokens: Option<i64>,
    /// false gives logits in place of probabilities.
    use_activation: Option<bool>,
    /// The older name of `use_activation`.
    activation: Option<bool>,
    /// Chats are refused.
    #[schema(ignore)]
    messages: Option<serde::de::IgnoredAny>,
}

/// A text, or several.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum ClassifyInput {
    One(String),
    Several(Vec<String>),
}

/// Results.
#[derive(Serialize, ToSchema)]
struct ClassifyAnswer<'a> {
    id: String,
    /// `list`
    object: &'static str,
    /// Seconds since 1970.
    created: i64,
    model: &'a str,
    data: Vec<ClassifyItem<'a>>,
    usage: Usage,
}

/// The result of one text.
#[derive(Serialize, ToSchema)]
struct ClassifyItem<'a> {
    index: usize,
    /// The most likely label.
    label: &'a str,
    /// One a label, in the order of `labels`; logits if `use_activation` is false.
    probs: &'a [f32],
    num_classes: usize,
    /// All labels; vLLM does not send them.
    labels: &'a [String],
    /// The labels above their thresholds; vLLM does not send them.
    predicted: Vec<&'a str>,
}

/// Tokens.
#[derive(Serialize, ToSchema)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
    #[schema(value_type = Option<Object>)]
    prompt_tokens_details: Option<()>,
}

/// Classify texts, in the form of vLLM
#[utoipa::path(
    post,
    path = "/classify",
    tag = "vLLM",
    request_body = ClassifyBody,
    responses(
        (status = 200, description = "Results", body = ClassifyAnswer),
        (status = 413, description = "Too long or too many", body = ErrorBody),
        (status = 422, description = "JSON of another form", body = ErrorBody),
        (status = 429, description = "Busy", body = ErrorBody),
    )
)]
pub(super) async fn classify(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    answer(&app, request).await.map_err(Refusal::nested)
}

async fn answer(app: &App, request: Request) -> Result<Response, Refusal> {
    let body: ClassifyBody = body::json(app, request).await?;
    if body.messages.is_some() {
        return Err(Refusal::invalid("messages: the models classify texts, not chats; send input"));
    }
    let texts = match body.input {
        Some(ClassifyInput::One(text)) => vec![text],
        Some(ClassifyInput::Several(texts)) => texts,
        None => return Err(Refusal::invalid("there is no input")),
    };
    let too_long = match body.truncate_prompt_tokens {
        None => TooLong::Refuse("\"truncate_prompt_tokens\": -1 has it cut, as --auto_truncate has all"),
        Some(-1) => TooLong::Cut,
        Some(_) => {
            return Err(Refusal::invalid("truncate_prompt_tokens: expected -1, for the most that the model takes"));
        }
    };
    let answer = app.classify(body.model.as_deref(), texts, too_long).await?;
    let is_raw = body.use_activation.or(body.activation) == Some(false);
    let data = answer.rows.iter().enumerate().map(|(index, row)| item(&answer, index, row, is_raw)).collect();
    let tokens = answer.tokens();
    Ok(answer.respond(&ClassifyAnswer {
        id: new_id(),
        object: "list",
        created: jiff::Timestamp::now().as_second(),
        model: &answer.model.info.name,
        data,
        usage: Usage { prompt_tokens: tokens, total_tokens: tokens, completion_tokens: 0, prompt_tokens_details: None },
    }))
}

fn item<'a>(answer: &'a Answer, index: usize, row: &'a Row, is_raw: bool) -> ClassifyItem<'a> {
    let labels = &answer.model.info.labels;
    ClassifyItem {
        index,
        label: &labels[row.most_likely()],
        probs: if is_raw { &row.scored.logits } else { &row.scored.probabilities },
        num_classes: labels.len(),
        labels,
        predicted: answer.predicted(row),
    }
}

/// An id that no other answer has.
fn new_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("classify-{:016x}{count:016x}", jiff::Timestamp::now().as_nanosecond() as u64)
}

/// The names of the models, in OpenAI's form
#[utoipa::path(get, path = "/v1/models", tag = "vLLM", responses((status = 200, description = "The models")))]
pub(super) async fn models(State(app): State<App>) -> Json<Value> {
    let models = app.0.models.all();
    let model = |name: &String| json!({"id": name, "object": "model", "owned_by": "llmcls"});
    let data: Vec<Value> = models.iter().map(|served| model(&served.info.name)).collect();
    Json(json!({"object": "list", "data": data}))
}
