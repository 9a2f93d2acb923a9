//! A pretrained model that is asked about labels, ready to answer: its files, its prompts, and what it says of rows.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::base_model::BaseModel;
use super::dataset;
use crate::config::Config;
use crate::console::Console;
use crate::data::table::Example;
use crate::data::token_texts::PromptEncoder;
use crate::data::tokenize::TextEncoder;
use crate::embedded;
use crate::evaluation::{Evaluation, NotFinite, decide, probabilities};
use crate::kernels::device::Device;
use crate::metrics::{Decision, Predictions};
use crate::model::classifier::Problem;
use crate::model::language_model::LanguageModel;
use crate::zeroshot::answer;
use crate::zeroshot::chat_template::ChatTemplate;
use crate::zeroshot::generate::{self, Generated, Rule, Work, generate};
use crate::zeroshot::label_list::LabelLists;
use crate::zeroshot::likelihood::{self, YesNo};
use crate::zeroshot::prompt::{Prompts, Shot, list};
use crate::zeroshot::shots;

/// A model and what is needed to ask it.
pub struct Asked<'a> {
    config: &'a Config,
    labels: &'a [String],
    pub base: BaseModel,
    pub max_length: usize,
    /// Rows of `--shots`, by their ids.
    pub shot_ids: Vec<String>,
    model: LanguageModel,
    /// The longest prompt that the model was made for, with its answer.
    most_tokens: Option<usize>,
    encoder: TextEncoder,
    prompt_encoder: PromptEncoder,
    token_bytes: Vec<Option<Vec<u8>>>,
    prompts: Prompts,
    console: Console,
}

/// What an answer may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// JSON lists over the labels, which are never empty if they are to be filled.
    Lists { is_filled: bool },
    /// Any words.
    Free,
}

/// The examples to choose from, and how.
pub struct Shots<'a> {
    /// Training rows.
    pub train: &'a [Example],
    /// Rows that are scored, whose texts are no examples.
    pub scored: &'a [Example],
    pub count: usize,
    pub seed: u32,
}

/// A row's answer, as `answers.jsonl` has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnswerLine {
    pub id: String,
    /// The model's words.
    pub answer: String,
    /// Names that it lists and that are no label.
    pub invented: Vec<String>,
    /// True if it is no JSON list of texts.
    pub is_broken: bool,
}

/// What the model said of some rows.
pub struct Answers {
    /// What is predicted, with the mean loss, or none where answers have no probabilities.
    pub evaluation: Evaluation,
    /// One row an example, one logit a label, where labels have probabilities.
    pub logits: Vec<Vec<f32>>,
    /// Of `--method generate`.
    pub lines: Vec<AnswerLine>,
    pub work: Work,
    pub seconds: f64,
}

impl<'a> Asked<'a> {
    /// Loads the model and writes the part of the prompt that all rows share.
    ///
    /// # Errors
    /// If the model has no language-model head, or its tokenizer or its chat template cannot be used.
    pub fn open(
        config: &'a Config,
        labels: &'a [String],
        examples: &Shots<'_>,
        device: &Device,
        console: Console,
    ) -> Result<Self> {
        let settings = &config.model;
        ensure!(
            !settings.random_init,
            "model.random_init is true, and a model of random weights answers nothing; name a pretrained decoder in \
             model.model_name"
        );
        let base = BaseModel::open(settings, device, console)?;
        let name = &base.files.name;
        let max_length = dataset::max_length(&config.data, &base, console);
        let encoder = base.encoder(max_length.into())?;
        let device = base.device_for_predicting();
        let model = LanguageModel::new(&base.config, &base.weights, base.storage, &device)
            .with_context(|| format!("{name}: cannot be asked"))?;
        let positions = embedded::read_to_string(&base.files.config)?;
        let positions = serde_json::from_str::<serde_json::Value>(&positions)?["max_position_embeddings"].as_u64();
        let most_tokens = base.config.max_tokens.into_iter().chain(positions.map(|most| most as usize)).min();
        let prompt_encoder = PromptEncoder::new(&encoder)?;
        let token_bytes = prompt_encoder.token_bytes().with_context(|| format!("{name}: cannot be asked"))?;
        let token = settings.hf_token.as_ref().map(|token| token.secret());
        let template = ChatTemplate::of_model(
            base.files.chat_template(token, console)?.as_deref(),
            &base.files.tokenizer,
            &base.files.config,
            |id| encoder.token_of(id),
        );
        let chat = template.with_context(|| format!("{name}: its chat template cannot be used"))?;
        if chat.is_none() {
            console.warn(format!(
                "{name}: has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): it gets the \
                 prompt as plain text, which suits models that were not trained to chat"
            ));
        }
        let chosen = shots::choose(examples.train, examples.scored, examples.count, examples.seed);
        if chosen.len() < examples.count {
            console.warn(format!(
                "--shots {}: only {} training rows have a text of their own",
                examples.count,
                chosen.len()
            ));
        }
        let rows = chosen.iter().map(|&row| &examples.train[row]);
        let shots = rows.clone().map(|row| {
            let labels = row.labels.iter().map(|&label| label > 0.5).collect();
            Ok(Shot { text: cut(&encoder, &row.text)?, labels })
        });
        let prompts = Prompts::new(
            &config.zeroshot.prompt,
            labels,
            &config.data.label_descriptions.clone().unwrap_or_default(),
            &shots.collect::<Result<Vec<_>>>()?,
            Problem::from(settings.problem_type) == Problem::SingleLabel,
            chat,
        )?;
        let shot_ids = rows.map(|row| row.id.clone()).collect();
        Ok(Self {
            config,
            labels,
            base,
            max_length,
            shot_ids,
            model,
            most_tokens,
            encoder,
            prompt_encoder,
            token_bytes,
            prompts,
            console,
        })
    }

    /// Whether the model's chat template writes the prompts.
    #[must_use]
    pub fn is_chat(&self) -> bool {
        self.prompts.is_chat()
    }

    /// The tokens of each row's text, and how many rows were cut.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn lengths(&self, rows: &[Example]) -> Result<(Vec<usize>, usize)> {
        let encoded = self.encoder.encode(rows.iter().map(|row| row.text.as_str()).collect())?;
        let cut = encoded.iter().filter(|tokens| tokens.was_cut).count();
        Ok((encoded.iter().map(|tokens| tokens.token_ids.len()).collect(), cut))
    }

    /// The prompt of a row, as the model reads it.
    ///
    /// # Errors
    /// If the chat template refuses it.
    pub fn prompt(&self, row: &Example, is_list: bool) -> Result<String> {
        let text = cut(&self.encoder, &row.text)?;
        if is_list { self.prompts.list(&text) } else { self.prompts.question(&text, 0) }
    }

    fn problem(&self) -> Problem {
        self.config.model.problem_type.into()
    }

    /// Asks about each label of each row, yes or no, and predicts labels by `decision`.
    ///
    /// # Errors
    /// If the model fails, or the user wants to stop.
    pub fn likelihood(&self, name: &str, rows: &[Example], decision: &Decision) -> Result<Answers> {
        let words = YesNo::new(&self.token_bytes, self.model.vocabulary(), &self.prompt_encoder)?;
        let texts: Vec<String> = rows.iter().map(|row| cut(&self.encoder, &row.text)).collect::<Result<_>>()?;
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let started = Instant::now();
        let mut bar = self.console.progress(format!("asking about {name}"), rows.len(), "rows");
        let asking = (&self.prompts, &self.prompt_encoder, &words);
        let on_text = || bar.advance(1, String::new);
        let (logits, work) =
            likelihood::logits((&self.model, self.most_tokens), asking, &texts, self.labels.len(), on_text)?;
        bar.finish();
        let seconds = started.elapsed().as_secs_f64();
        let evaluation = evaluation(&logits, rows, self.problem(), decision)?;
        Ok(Answers { evaluation, logits, lines: Vec::new(), work, seconds })
    }

    /// Lets the model list the labels of each row.
    ///
    /// # Errors
    /// If the model fails, or the user wants to stop.
    pub fn generate(&self, name: &str, rows: &[Example], form: Form, batch_size: usize) -> Result<Answers> {
        let encode = |row: &Example| {
            let prompt = self.prompt(row, true)?;
            if self.prompts.is_chat() {
                self.prompt_encoder.rendered(&prompt)
            } else {
                self.prompt_encoder.plain(&prompt)
            }
        };
        let prompts: Vec<Vec<u32>> = rows.iter().map(encode).collect::<Result<_>>()?;
        let is_single = self.problem() == Problem::SingleLabel;
        let (fewest, most_labels) = match form {
            _ if is_single => (1, 1),
            Form::Lists { is_filled } => (usize::from(is_filled), self.labels.len()),
            Form::Free => (0, self.labels.len()),
        };
        let is_free = form == Form::Free;
        let lead = if self.prompts.is_chat() { "" } else { " " };
        let lists =
            LabelLists::new(self.labels, fewest..=most_labels, lead, &self.token_bytes, self.model.vocabulary());
        let all = list(self.labels, &vec![true; self.labels.len()]);
        // Room for a few words around a list of all labels.
        let most = self.prompt_encoder.rendered(&all)?.len() + 32;
        generate::check_lengths(self.most_tokens, &prompts, if is_free { most } else { all.len() + 1 })?;
        let ends: Vec<bool> = self.token_bytes.iter().map(Option::is_none).collect();
        let rule = if is_free { Rule::Free { ends: &ends, most } } else { Rule::Lists(&lists) };
        let started = Instant::now();
        let mut bar = self.console.progress(format!("asking about {name}"), rows.len(), "rows");
        let (generated, work) = generate(&self.model, &prompts, &rule, batch_size, |count| {
            bar.advance(count, String::new);
        })?;
        bar.finish();
        let seconds = started.elapsed().as_secs_f64();
        let (predicted, lines): (Vec<_>, Vec<_>) =
            rows.iter().zip(&generated).map(|(row, generated)| self.read(row, generated)).unzip();
        let certain = |row: &Vec<bool>| row.iter().map(|&is_set| f32::from(u8::from(is_set))).collect();
        let predictions =
            Predictions { probabilities: predicted.iter().map(certain).collect(), predicted, targets: targets(rows) };
        let evaluation = Evaluation { predictions, loss: f64::NAN };
        Ok(Answers { evaluation, logits: Vec::new(), lines, work, seconds })
    }

    /// The labels of an answer, and its line.
    fn read(&self, row: &Example, generated: &Generated) -> (Vec<bool>, AnswerLine) {
        let bytes = generated.tokens.iter().filter_map(|&token| self.token_bytes.get(token as usize)?.as_deref());
        let answer = String::from_utf8_lossy(&bytes.collect::<Vec<_>>().concat()).into_owned();
        let read = answer::read(&answer, self.labels);
        let labels = generated.labels.clone().unwrap_or(read.labels);
        (labels, AnswerLine { id: row.id.clone(), answer, invented: read.invented, is_broken: read.is_broken })
    }
}

/// A text up to the last token that fits.
fn cut(encoder: &TextEncoder, text: &str) -> Result<String> {
    if !encoder.encode_one(text)?.was_cut {
        return Ok(text.to_owned());
    }
    let spans: Vec<_> = encoder.spans(text)?.into_iter().flatten().collect();
    let start = spans.iter().map(|span| span.start).min().unwrap_or(0);
    let end = spans.iter().map(|span| span.end).max().unwrap_or(0);
    let mut end = end.min(text.len());
    // A token of a byte-level vocabulary may end inside a character.
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut start = start.min(end);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    Ok(text[start..end].to_owned())
}

fn targets(rows: &[Example]) -> Vec<Vec<bool>> {
    rows.iter().map(|row| row.labels.iter().map(|&label| label > 0.5).collect()).collect()
}

/// Predictions from logits by `decision`, and the mean loss.
///
/// # Errors
/// If a logit is not finite.
pub fn evaluation(logits: &[Vec<f32>], rows: &[Example], problem: Problem, decision: &Decision) -> Result<Evaluation> {
    for (sample, row) in logits.iter().enumerate() {
        if let Some(label) = row.iter().position(|logit| !logit.is_finite()) {
            let message = format!("the logit of label {} is {}", label + 1, row[label]);
            bail!(NotFinite { message, sample: Some(sample) });
        }
    }
    let probabilities: Vec<Vec<f32>> = logits.iter().map(|row| probabilities(row, problem)).collect();
    let labels = rows.first().map_or(0, |row| row.labels.len());
    let targets = targets(rows);
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    let loss = |logits: &Vec<f32>, targets: &Vec<bool>| match problem {
        Problem::MultiLabel => {
            let terms = logits.iter().zip(targets);
            let terms = terms.map(|(&x, &holds)| softplus(if holds { -f64::from(x) } else { f64::from(x) }));
            terms.sum::<f64>() / labels.max(1) as f64
        }
        Problem::SingleLabel => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
            let own = logits.iter().zip(targets).find(|(_, holds)| **holds).map_or(0.0, |(&x, _)| f64::from(x - max));
            sum.ln() - own
        }
    };
    let total: f64 = logits.iter().zip(&targets).map(|(logits, targets)| loss(logits, targets)).sum();
    let predicted = probabilities.iter().map(|row| decide(row, problem, decision)).collect();
    let loss = total / rows.len().max(1) as f64;
    Ok(Evaluation { predictions: Predictions { probabilities, predicted, targets }, loss })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torch 2.15: `binary_cross_entropy_with_logits` and `cross_entropy` of these numbers.
    #[test]
    fn the_loss_is_that_of_torch() {
        let row = |labels: [f32; 3]| Example { id: String::new(), text: String::new(), labels: labels.to_vec() };
        let rows = [row([1.0, 0.0, 0.0]), row([0.0, 0.0, 1.0])];
        let logits = [vec![0.5, -1.0, 2.0], vec![-3.0, 0.25, 1.5]];
        let half = Decision::above(&[0.5; 3]);
        let multi = evaluation(&logits, &rows, Problem::MultiLabel, &half).unwrap();
        assert!((multi.loss - LOSSES[0]).abs() < 1e-6, "{}", multi.loss);
        assert_eq!(multi.predictions.predicted, [[true, false, true], [false, true, true]]);
        let single = evaluation(&logits, &rows, Problem::SingleLabel, &half).unwrap();
        assert!((single.loss - LOSSES[1]).abs() < 1e-6, "{}", single.loss);
        assert_eq!(single.predictions.predicted, [[false, false, true], [false, false, true]]);
        assert!(evaluation(&[vec![f32::NAN; 3]], &rows[..1], Problem::MultiLabel, &half).is_err());
    }

    const LOSSES: [f64; 2] = [0.665_034_455, 1.00091917];

    #[test]
    fn a_long_text_is_cut_at_a_token() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-llama/tokenizer.json");
        let encoder = TextEncoder::open(&path, 6, None).unwrap();
        let text = "naïve café — a rather long text of many words and signs 日本語";
        let cut_text = cut(&encoder, text).unwrap();
        assert!(text.starts_with(&cut_text) && cut_text.len() < 40 && !cut_text.is_empty(), "{cut_text}");
        assert_eq!(cut(&encoder, "a").unwrap(), "a");
    }
}
