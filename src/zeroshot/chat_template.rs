//! A model's chat template, Jinja2 as transformers renders it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use regex::Regex;
use serde_json::Value as Json;

/// A turn of a conversation.
#[derive(Clone, Debug)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// A template, ready to render.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

const NAME: &str = "chat template";

impl ChatTemplate {
    /// Parses a template; `bos` and `eos` are the texts of those tokens.
    ///
    /// # Errors
    /// If it is not Jinja2.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.context("white space in templates")?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, without_generation_tags(source)?).context("the chat template")?;
        Ok(Self { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The template of a model: `chat_template.jinja` if there is one, else that of `tokenizer_config.json` among the
    /// tokenizer's files. `token_of` gives the text of a token's id.
    ///
    /// # Errors
    /// If a file cannot be read, or the template is not Jinja2.
    pub fn of_model(
        jinja: Option<&Path>,
        tokenizer_files: &[PathBuf],
        model_config: &Path,
        token_of: impl Fn(u32) -> Option<String>,
    ) -> Result<Option<Self>> {
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()));
        let object = |path: &Path| -> Result<Json> {
            serde_json::from_str(&read(path)?).with_context(|| format!("{}: not JSON", path.display()))
        };
        let named = |name: &str| tokenizer_files.iter().find(|path| path.ends_with(name));
        let settings = named("tokenizer_config.json").map(|path| object(path)).transpose()?.unwrap_or_default();
        let special = named("special_tokens_map.json").map(|path| object(path)).transpose()?.unwrap_or_default();
        let model = object(model_config)?;
        let source = match (jinja, chosen(&settings["chat_template"])) {
            (Some(path), _) => read(path)?,
            (None, Some(source)) => source.to_owned(),
            (None, None) => return Ok(None),
        };
        let token = |name: &str| {
            let of_id = || token_of(model[format!("{name}_id")].as_u64()?.try_into().ok()?);
            text_of(&settings[name]).or_else(|| text_of(&special[name])).or_else(of_id).unwrap_or_default()
        };
        Self::new(&source, &token("bos_token"), &token("eos_token")).map(Some)
    }

    /// The text of a conversation, up to where the model answers.
    ///
    /// # Errors
    /// If the template refuses it, or uses what is not known here.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        let turn = |message: &Message| {
            Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())])
        };
        let context = context! {
            messages => messages.iter().map(turn).collect::<Vec<Value>>(),
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => Value::from(()),
            documents => Value::from(()),
        };
        let template = self.environment.get_template(NAME)?;
        template.render(context).context("the model's chat template cannot be rendered")
    }
}

/// The template, or of several that of the name `default`.
fn chosen(value: &Json) -> Option<&str> {
    let of_list = |templates: &'_ [Json]| templates.iter().position(|template| template["name"] == "default");
    match value {
        Json::Array(templates) => templates[of_list(templates)?]["template"].as_str(),
        other => other.as_str(),
    }
}

/// A token's text, alone or in an object.
fn text_of(value: &Json) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// transformers marks the assistant's words with a tag of its own, which prints nothing.
fn without_generation_tags(source: &str) -> Result<String> {
    let start = Regex::new(r"\{%(-?)\s*generation\s*(-?)%\}")?;
    let end = Regex::new(r"\{%(-?)\s*endgeneration\s*(-?)%\}")?;
    let source = start.replace_all(source, "{%$1 if true $2%}");
    Ok(end.replace_all(&source, "{%$1 endif $2%}").into_owned())
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Today's date, which transformers gives too; of UTC, so that all machines write the same prompt.
fn strftime_now(format: String) -> Result<String, Error> {
    let today = jiff::fmt::strtime::format(&format, jiff::Timestamp::now());
    today.map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let mut out = String::new();
    python_json(value, options.get("indent")?, 0, &mut out)?;
    Ok(out)
}

fn python_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    let (open, close) = match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => ('[', ']'),
        ValueKind::Map => ('{', '}'),
        ValueKind::String => {
            out.push_str(&Json::from(value.as_str().unwrap_or_default()).to_string());
            return Ok(());
        }
        ValueKind::Undefined | ValueKind::None => {
            out.push_str("null");
            return Ok(());
        }
        _ => {
            out.push_str(&value.to_string());
            return Ok(());
        }
    };
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(indent * depth));
        }
    };
    out.push(open);
    let mut is_empty = true;
    for item in value.try_iter()? {
        if !is_empty {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        is_empty = false;
        line(out, depth + 1);
        if value.kind() == ValueKind::Map {
            out.push_str(&format!("{}: ", Json::from(item.to_string())));
            python_json(&value.get_item(&item)?, indent, depth + 1, out)?;
        } else {
            python_json(&item, indent, depth + 1, out)?;
        }
    }
    if !is_empty {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What transformers 4.57.6 renders; made by scripts/make_language_fixtures.py.
    #[test]
    fn templates_render_as_in_transformers() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/language/chat.json");
        let file: Json = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let text = |value: &Json| value.as_str().unwrap().to_owned();
        let cases = file["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 10);
        for case in cases {
            let template =
                ChatTemplate::new(&text(&case["template"]), &text(&file["bos_token"]), &text(&file["eos_token"]));
            let messages = case["messages"].as_array().unwrap().iter();
            let message = |m: &Json| Message { role: text(&m["role"]), content: text(&m["content"]) };
            let rendered = template.unwrap().render(&messages.map(message).collect::<Vec<_>>());
            match case["error"].as_str() {
                Some(error) => assert!(format!("{:#}", rendered.unwrap_err()).contains(error)),
                None => assert_eq!(rendered.unwrap(), text(&case["text"]), "{}", case["name"]),
            }
        }
    }

    #[test]
    fn tags_around_the_assistants_words_print_nothing() {
        let source = "{% for m in messages %}{%- generation -%}{{ m.content }}{%- endgeneration %}{% endfor %}!";
        let message = Message { role: "user".to_owned(), content: "é".to_owned() };
        assert_eq!(ChatTemplate::new(source, "", "").unwrap().render(&[message]).unwrap(), "é!");
    }

    #[test]
    fn the_template_comes_from_the_files_of_the_model() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let config = write("config.json", r#"{"bos_token_id": 7}"#);
        let settings = write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "{{ bos_token }}d{{ eos_token }}"}],
                "eos_token": {"content": "<end>"}}"#,
        );
        let of_model = |jinja: Option<&Path>, files: &[PathBuf]| {
            let token = |id: u32| Some(format!("<{id}>"));
            let template = ChatTemplate::of_model(jinja, files, &config, token).unwrap();
            template.map(|template| template.render(&[]).unwrap())
        };
        assert_eq!(of_model(None, std::slice::from_ref(&settings)).unwrap(), "<7>d<end>");
        let jinja = write("chat_template.jinja", "j");
        assert_eq!(of_model(Some(&jinja), &[settings]).unwrap(), "j");
        assert_eq!(of_model(None, &[]), None);
    }
}
