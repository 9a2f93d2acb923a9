//! The parts of a run that can be given to others: adapter, card and report, without paths of this machine and
//! without texts of rows.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, Result, bail, ensure};
use regex::{Captures, Regex};
use serde_json::{Map, Value};

use super::base_facts::BaseFacts;
use super::classifier_file::ClassifierFile;
use super::report::ROW_TEXT;
use super::{adapter, manifest, model_card};
use crate::atomic_file;

/// A file of an adapter's directory that others need.
const ADAPTER_FILES: [&str; 4] =
    [adapter::WEIGHTS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
/// The report's name.
pub const REPORT: &str = "report.html";

/// An adapter with all that belongs to it, as others get it.
pub struct Publication<'a> {
    /// The adapter's directory.
    pub adapter: &'a Path,
    /// `classifier.json`
    pub file: &'a ClassifierFile,
    /// The run's report, if there is one.
    pub report: Option<&'a Path>,
    /// Paths of this machine, which nothing may contain.
    pub private: PrivatePaths,
}

impl Publication<'_> {
    /// Writes the files into a directory. Returns whether Python finds the base by its name.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn write_adapter(&self, directory: &Path) -> Result<bool> {
        let base = BaseFacts::of(self.file);
        let is_on_the_hub = base.hub_name.is_some();
        let name = base.hub_name.unwrap_or(base.short);
        for file in ADAPTER_FILES.into_iter().chain([model_card::NAME]) {
            let from = self.adapter.join(file);
            if from.is_file() {
                let contents = fs::read(&from).with_context(|| format!("{}: cannot read", from.display()))?;
                atomic_file::write_bytes(&directory.join(file), &contents)?;
            }
        }
        let path = self.adapter.join(adapter::CONFIG);
        let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
        let mut config: Map<String, Value> =
            serde_json::from_str(&text).with_context(|| format!("{}: not a JSON object", path.display()))?;
        config.insert("base_model_name_or_path".to_owned(), name.clone().into());
        atomic_file::write_bytes(&directory.join(adapter::CONFIG), &serde_json::to_vec_pretty(&config)?)?;
        let mut file = self.file.clone();
        file.base.name = name;
        file.save(directory)?;
        manifest::write(directory)?;
        Ok(is_on_the_hub)
    }

    /// Writes the report into a directory, if the run has one.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn write_report(&self, directory: &Path) -> Result<()> {
        let Some(report) = self.report.filter(|report| report.is_file()) else { return Ok(()) };
        let html = fs::read_to_string(report).with_context(|| format!("{}: cannot read", report.display()))?;
        let html = self.private.shortened(&without_texts(&html)?);
        atomic_file::write_bytes(&directory.join(REPORT), html.as_bytes())
    }

    /// Refuses a file that names a path of this machine.
    ///
    /// # Errors
    /// Names the file and the path.
    pub fn check(&self, directory: &Path) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_text = [".json", ".md", ".html"].iter().any(|ending| name.ends_with(ending));
            // Tokens of a vocabulary are no paths, whatever they look like.
            if is_text && name != "tokenizer.json" {
                let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
                if let Some(found) = self.private.found_in(&text) {
                    bail!(
                        "{name} names `{found}`, a path of this machine, which would be published; take it out of {}",
                        self.adapter.join(&*name).display()
                    );
                }
            }
        }
        Ok(())
    }
}

/// Takes the texts of rows out of a report: a public page must not show them.
///
/// # Errors
/// If a row's error keeps its text, because the report has another form.
fn without_texts(html: &str) -> Result<String> {
    if !html.contains(r#"<meta name="llmcls-row-texts" content="marked">"#) {
        return without_texts_of_version_1(html);
    }
    let [begin, end] = ROW_TEXT;
    let mut parts = html.split(begin);
    let mut cut = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (_, rest) = part.split_once(end).context(OTHER_FORM)?;
        cut.push_str(rest);
    }
    ensure!(!cut.contains(end) && !cut.contains(r#"class="rowtext""#), OTHER_FORM);
    Ok(cut)
}

const OTHER_FORM: &str =
    "the report has a form from which the texts of rows cannot be taken out; leave it out with --no_report";

/// Of a report from before the marks.
fn without_texts_of_version_1(html: &str) -> Result<String> {
    static TEXT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"(<p class="error"><b>[^<]*</b>[^<]*<span class="soft">[^<]*</span>)<br>[^<]*</p>"#)
            .expect("the expression is valid")
    });
    let cut = TEXT.replace_all(html, "$1</p>").into_owned();
    let mut errors = cut.split("class=\"error\"").skip(1);
    ensure!(!errors.any(|error| error.split("</p>").next().is_some_and(|error| error.contains("<br>"))), OTHER_FORM);
    Ok(cut)
}

/// Paths that say where things lie on this machine.
#[derive(Clone, Debug, Default)]
pub struct PrivatePaths(Vec<PathBuf>);

impl PrivatePaths {
    /// Those of `paths`, as they are written and in full, and the directories of this process and this user.
    #[must_use]
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut all: Vec<PathBuf> = Vec::new();
        for path in paths {
            all.extend(fs::canonicalize(&path));
            all.push(path);
        }
        all.extend(std::env::current_dir());
        all.extend(std::env::home_dir());
        all.extend([std::env::temp_dir()]);
        // A name alone says nothing of the machine.
        all.retain(|path| path.components().count() > 1);
        all.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
        all.dedup();
        Self(all)
    }

    /// The text with each of these paths, or a path below one, cut to its last part.
    fn shortened(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for path in &self.0 {
            let Some(path) = path.to_str() else { continue };
            let Ok(expression) = Regex::new(&format!(r#"{}(?:[/\\][^\s"'<>&,;]*)?"#, regex::escape(path))) else {
                continue;
            };
            let cut = |found: &Captures<'_>| {
                let whole = found[0].trim_end_matches(['/', '\\']);
                whole.rsplit(['/', '\\']).next().unwrap_or_default().to_owned()
            };
            text = expression.replace_all(&text, cut).into_owned();
        }
        text
    }

    /// The first of these paths in a text, as a whole or with more below it.
    fn found_in(&self, text: &str) -> Option<&str> {
        let is_end = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '-' | '_' | '.'));
        let is_start = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '-' | '_' | '.' | '/'));
        self.0.iter().filter_map(|path| path.to_str()).find(|path| {
            text.match_indices(path).any(|(at, found)| {
                is_start(text[..at].chars().next_back()) && is_end(text[at + found.len()..].chars().next())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cut_to_their_last_part_and_found_where_they_stay() {
        let private = PrivatePaths(vec!["/srv/ann/data".into(), "models/mini".into()]);
        let text = "train_csv: /srv/ann/data/a b.csv\nmodel: models/mini\nx: 'models/mini/v2'; other models/minister";
        assert_eq!(private.shortened(text), "train_csv: a b.csv\nmodel: mini\nx: 'v2'; other minister");
        assert_eq!(private.found_in("{\"a\": \"/srv/ann/data\"}"), Some("/srv/ann/data"));
        assert_eq!(private.found_in("at models/mini/x"), Some("models/mini"));
        for harmless in ["models/minister", "my-models/mini", "other/models/mini", "/srv/ann/database"] {
            assert_eq!(private.found_in(harmless), None, "{harmless}");
        }
    }

    #[test]
    fn a_report_loses_the_texts_of_its_rows_and_nothing_else() {
        let html = "<details><summary>a</summary><p class=\"error\"><b>0.912</b> predicted, not there <span \
                    class=\"soft\">row 7</span><br>my &lt;secret&gt; text\nand more</p></details><p>x<br>y</p>";
        let cut = without_texts(html).unwrap();
        assert!(!cut.contains("secret") && cut.contains("row 7</span></p></details><p>x<br>y</p>"), "{cut}");
        let marked = format!(
            "<meta name=\"llmcls-row-texts\" content=\"marked\"><td>row 7</td>{}my <b>secret</b>\ntext{}<p>x</p>{0}b{1}",
            ROW_TEXT[0], ROW_TEXT[1]
        );
        assert!(without_texts(&marked).unwrap().ends_with("<td>row 7</td><p>x</p>"));
        for broken in [format!("{marked}{}", ROW_TEXT[0]), format!("{marked}{}", ROW_TEXT[1])] {
            assert!(without_texts(&broken).unwrap_err().to_string().contains("--no_report"));
        }
        let other = html.replace("<b>0.912</b>", "<i>0.912</i>");
        assert!(without_texts(&other).unwrap_err().to_string().contains("--no_report"));
    }
}
