//! `llmcls runs`: lists the runs, newest first.

use anyhow::Result;
use serde_json::json;

use crate::cli::RunsArgs;
use crate::console::{print, print_json};
use crate::run::listing::list;

pub fn run(args: &RunsArgs) -> Result<()> {
    let runs = list(&args.output_root);
    if args.json {
        return print_json(&json!(runs));
    }
    if runs.is_empty() {
        return print(&format!("no run under {}\n", args.output_root.display()));
    }
    let mut out =
        format!("{:<17}{:<22}{:<14}{:<11}{:>9}{:>7}\n", "date (UTC)", "model", "data", "state", "f1_micro", "macro");
    for run in &runs {
        out.push_str(&run.lines());
    }
    print(&out)
}
