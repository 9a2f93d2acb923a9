//! A line a request on standard error, plain or as JSON. Texts of users are in none unless asked for.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::answer::Facts;
use super::settings::LogSettings;
use crate::console::complain;

/// Writes lines.
#[derive(Clone, Copy)]
pub(super) struct Log {
    pub(super) settings: LogSettings,
}

impl Log {
    /// Tells of a request. The route is its pattern: what stood in its place may be a user's.
    pub(super) fn request(self, method: &str, route: &str, status: u16, took: Duration, facts: &Facts) {
        // 503 is an answer to whoever waits for the models.
        if self.settings.is_quiet && (status < 500 || status == 503) {
            return;
        }
        let milliseconds = (took.as_secs_f64() * 1e4).round() / 10.0;
        let mut fields = Map::new();
        if let Some(model) = &facts.model {
            fields.insert("model".to_owned(), json!(model));
            fields.insert("texts".to_owned(), json!(facts.texts));
            fields.insert("tokens".to_owned(), json!(facts.tokens));
        }
        if let Some(kind) = facts.kind {
            fields.insert("error".to_owned(), json!(kind));
        }
        if self.settings.has_texts && !facts.logged_texts.is_empty() {
            fields.insert("inputs".to_owned(), json!(facts.logged_texts));
        }
        if self.settings.is_json {
            let level = if status >= 500 { "error" } else { "info" };
            let mut line = json!({
                "time": now(), "level": level, "method": method, "route": route, "status": status, "ms": milliseconds,
            });
            if let Value::Object(object) = &mut line {
                object.extend(fields);
            }
            return complain(line.to_string());
        }
        let fields = fields.iter().fold(String::new(), |line, (name, value)| format!("{line} {name}={value}"));
        complain(format!("{} {method} {route} {status} {milliseconds} ms{fields}", now()));
    }

    /// Tells of the server itself.
    pub(super) fn say(self, message: &str) {
        if !self.settings.is_quiet {
            self.line("info", message);
        }
    }

    /// Tells of something that someone should look at.
    pub(super) fn warn(self, message: &str) {
        self.line("warning", message);
    }

    fn line(self, level: &str, message: &str) {
        if self.settings.is_json {
            return complain(json!({"time": now(), "level": level, "message": message}).to_string());
        }
        complain(match level {
            "info" => message.to_owned(),
            level => format!("{level}: {message}"),
        });
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}
