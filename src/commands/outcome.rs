//! The end of training: results for people or for scripts, and the next commands.

use std::fmt::Write;

use anyhow::Result;
use serde_json::json;

use crate::console::{bold, print, print_json};
use crate::exit::quoted;
use crate::run::directory::RunDir;
use crate::run::results::{OverSeeds, RunSummary};

/// Prints a run's results to standard output.
pub(super) fn print_results(run: &RunDir, summary: &RunSummary, is_json: bool) -> Result<()> {
    let path = run.path().display().to_string();
    if is_json {
        return print_json(&json!({"run": path, "report": run.report().display().to_string(), "summary": summary}));
    }
    let mut out = String::new();
    writeln!(out, "{:<12}{}{}", "", bold(&format!("{:<18}", "micro-F1")), bold("macro-F1"))?;
    for split in ["validation", "test"] {
        let score = |name: &str| {
            let OverSeeds { mean, sd } = summary.over_seeds.get(&format!("{split}_{name}"))?;
            Some(format!("{mean:.4}{}", sd.map_or_else(String::new, |sd| format!(" ± {sd:.4}"))))
        };
        if let (Some(micro), Some(mean)) = (score("f1_micro"), score("f1_macro")) {
            writeln!(out, "{split:<12}{micro:<18}{mean}")?;
        }
    }
    if let Some(baseline) = &summary.baseline {
        writeln!(out, "\n{}", baseline.to_text().trim_end())?;
    }
    let run_word = quoted(&path);
    writeln!(out, "\n{}     {path}", bold("run"))?;
    writeln!(out, "{}  {}", bold("report"), run.report().display())?;
    writeln!(out, "{}    llmcls predict --run {run_word} --text \"…\"", bold("next"))?;
    print(&out)
}
