//! `POST /invocations`, for SageMaker: JSON, JSON Lines or CSV.

use std::borrow::Cow;

use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::info::ModelQuery;
use super::predict::Prediction;
use crate::data::table::join_fields;
use crate::server::answer::{ErrorBody, Refusal};
use crate::server::app::{Answer, App, TooLong};
use crate::server::body;
use crate::server::models::Served;

/// The forms of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    JsonLines,
    Csv,
}

/// `{"inputs": …}` or `{"instances": …}`: a text or a list of texts.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InvocationsBody {
    #[serde(alias = "instances", alias = "texts")]
    #[schema(example = json!(["a chess program"]))]
    inputs: Inputs,
    /// The name of a model; the first one without.
    model: Option<String>,
}

/// A text, or several.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum Inputs {
    One(String),
    Several(Vec<String>),
}

#[derive(Serialize, ToSchema)]
struct Predictions<'a> {
    /// One a text.
    predictions: Vec<Prediction<'a>>,
}

impl Form {
    fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json" => Some(Self::Json),
            "application/jsonlines" | "application/jsonl" | "application/x-jsonlines" | "application/x-ndjson" => {
                Some(Self::JsonLines)
            }
            "text/csv" => Some(Self::Csv),
            _ => None,
        }
    }

    /// The form that the answer is wanted in; that of the request if the client takes any.
    fn wanted(headers: &HeaderMap, given: Self) -> Result<Self, Refusal> {
        let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("*/*");
        let types = accept.split(',').map(|part| part.split(';').next().unwrap_or_default().trim());
        for media_type in types {
            if let Some(form) = Self::of(&media_type.to_ascii_lowercase()) {
                return Ok(form);
            }
            if ["*/*", "application/*", ""].contains(&media_type) {
                return Ok(given);
            }
        }
        Err(Refusal::media_type(format!(
            "Accept is `{accept}`; an answer is application/json, application/jsonlines or text/csv"
        )))
    }

    /// The texts of a body, and the model that it names.
    fn texts(self, bytes: &[u8], model: &Served) -> Result<Vec<String>, Refusal> {
        match self {
            Self::Json => Ok(match body::parse::<InvocationsBody>(bytes)?.inputs {
                Inputs::One(text) => vec![text],
                Inputs::Several(texts) => texts,
            }),
            Self::JsonLines => {
                let lines = bytes.split(|&byte| byte == b'\n').enumerate();
                let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
                lines.map(|(index, line)| of_line(line, index + 1, model)).collect()
            }
            Self::Csv => of_csv(bytes, model),
        }
    }
}

/// A string, or an object with the model's columns, `text` or `inputs`.
fn of_line(line: &[u8], number: usize, model: &Served) -> Result<String, Refusal> {
    let value: Value = serde_json::from_slice(line)
        .map_err(|error| Refusal::malformed(format!("line {number} is not JSON: {error}")))?;
    let object = match value {
        Value::String(text) => return Ok(text),
        Value::Object(object) => object,
        _ => return Err(Refusal::invalid(format!("line {number}: expected a string or an object"))),
    };
    if let Some(fields) = &model.text_fields {
        let cells: Option<Vec<Cow<'_, str>>> =
            fields.iter().map(|field| object.get(field)?.as_str().map(Cow::Borrowed)).collect();
        if let Some(cells) = cells {
            return Ok(join_fields(&cells));
        }
    }
    let names = [model.text_column.as_str(), "text", "inputs"];
    let text = names.iter().find_map(|name| object.get(*name)?.as_str());
    text.map(str::to_owned).ok_or_else(|| {
        Refusal::invalid(format!("line {number}: expected a string, or an object with `{}` or `text`", names[0]))
    })
}

/// Records without a header, as SageMaker sends them: a text, or the columns that make one.
fn of_csv(bytes: &[u8], model: &Served) -> Result<Vec<String>, Refusal> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes);
    let columns = model.text_fields.as_ref().map_or(1, Vec::len);
    let text = |(index, record): (usize, csv::Result<csv::StringRecord>)| {
        let record = record.map_err(|error| Refusal::malformed(format!("the body is not CSV: {error}")))?;
        match record.len() {
            1 => Ok(record[0].to_owned()),
            count if count == columns => Ok(join_fields(&record.iter().map(Cow::Borrowed).collect::<Vec<_>>())),
            count => Err(Refusal::invalid(format!(
                "record {} has {count} cells, expected a text; quote a text that has commas",
                index + 1
            ))),
        }
    };
    reader.records().enumerate().map(text).collect()
}

/// Classify texts, for SageMaker
#[utoipa::path(
    post,
    path = "/invocations",
    tag = "SageMaker",
    params(ModelQuery),
    request_body(
        content((InvocationsBody = "application/json"), (String = "application/jsonlines"), (String = "text/csv"))
    ),
    responses(
        (status = 200, description = "Predictions in the form of the request, or as Accept asks", body = Predictions),
        (status = 413, description = "Too many", body = ErrorBody),
        (status = 415, description = "Another form", body = ErrorBody),
        (status = 422, description = "JSON of another form", body = ErrorBody),
        (status = 429, description = "Busy", body = ErrorBody),
    )
)]
pub(super) async fn invocations(
    State(app): State<App>,
    Query(query): Query<ModelQuery>,
    request: Request,
) -> Result<Response, Refusal> {
    let given = body::media_type(request.headers());
    let form = Form::of(&given).ok_or_else(|| {
        Refusal::media_type(format!(
            "the body's Content-Type is `{given}`; send application/json, application/jsonlines or text/csv"
        ))
    })?;
    let wanted = Form::wanted(request.headers(), form)?;
    let bytes = body::bytes(&app, request).await?;
    let named = match form {
        Form::Json => body::parse::<InvocationsBody>(&bytes)?.model,
        _ => None,
    };
    let name = named.or(query.model);
    let texts = form.texts(&bytes, &*app.model(name.as_deref())?)?;
    let answer = app.classify(name.as_deref(), texts, TooLong::Cut).await?;
    write(&answer, wanted)
}

fn write(answer: &Answer, form: Form) -> Result<Response, Refusal> {
    let predictions = || answer.rows.iter().map(|row| Prediction::new(answer, row));
    let failed = |error: String| Refusal::failed(format!("the answer cannot be written: {error}"));
    match form {
        Form::Json => Ok(answer.respond(&Predictions { predictions: predictions().collect() })),
        Form::JsonLines => {
            let mut lines = Vec::new();
            for prediction in predictions() {
                serde_json::to_writer(&mut lines, &prediction).map_err(|error| failed(error.to_string()))?;
                lines.push(b'\n');
            }
            Ok(answer.with_facts(([(header::CONTENT_TYPE, "application/jsonlines")], lines).into_response()))
        }
        Form::Csv => {
            let mut csv = csv::Writer::from_writer(Vec::new());
            for row in &answer.rows {
                let predicted = serde_json::json!(answer.predicted(row)).to_string();
                let numbers = row.scored.probabilities.iter().map(ToString::to_string);
                csv.write_record(std::iter::once(predicted).chain(numbers))
                    .map_err(|error| failed(error.to_string()))?;
            }
            let table = csv.into_inner().map_err(|error| failed(error.to_string()))?;
            Ok(answer.with_facts(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], table).into_response()))
        }
    }
}
