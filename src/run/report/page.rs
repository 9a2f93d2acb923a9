//! A page as one file without network access: what it may load is said by hashes of these very bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("style.css");

/// A page and its content.
pub(super) struct Page<'a> {
    pub(super) title: &'a str,
    /// None: the page runs none.
    pub(super) script: Option<&'a str>,
    /// True if the texts of rows stand between marks, by which they can be taken out.
    pub(super) marks_row_texts: bool,
    pub(super) body: Markup,
}

impl Page<'_> {
    pub(super) fn to_html(&self) -> String {
        let script = self.script.map(|script| format!("script-src 'sha256-{}'; ", hash(script))).unwrap_or_default();
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{}'; {script}base-uri 'none'; form-action 'none'",
            hash(STYLE)
        );
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy);
                    @if self.marks_row_texts { meta name="llmcls-row-texts" content="marked"; }
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    h1 { (self.title) }
                    (self.body)
                    @if let Some(script) = self.script { script { (PreEscaped(script)) } }
                }
            }
        };
        page.into_string()
    }
}

/// The hash of an inline style or script, as a content-security policy names it.
fn hash(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text.as_bytes()))
}
