//! Checks that all ranks of a job compute the same thing, before the first step.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::prepared::Experiment;
use crate::cluster::{self, Group};

/// Refuses if a rank has another program, configuration, data or base than rank 0.
///
/// # Errors
/// Names the rank, its machine and what differs.
pub fn ensure_alike(experiment: &Experiment<'_>, group: &Group) -> Result<()> {
    if group.size() == 1 {
        return Ok(());
    }
    let own = json!({
        "version": format!("{} {}", env!("CARGO_PKG_VERSION"), option_env!("LLMCLS_COMMIT").unwrap_or("")),
        "config": experiment.config,
        "inputs": experiment.inputs,
    });
    let all = group.gather(&own)?;
    for (rank, other) in all.iter().enumerate().skip(1) {
        let mut found = Vec::new();
        differences("", &all[0], other, &mut found);
        if !found.is_empty() {
            let member = cluster::member().context("a group has members")?;
            bail!(
                "rank {rank} on {} has other inputs than rank 0 on {}, so they would train different models: {}",
                member.hosts[rank],
                member.hosts[0],
                found.join("; ")
            );
        }
    }
    Ok(())
}

/// Lists the leaves in which two values differ.
fn differences(at: &str, first: &Value, second: &Value, found: &mut Vec<String>) {
    if let (Value::Object(first), Value::Object(second)) = (first, second) {
        let keys = first.keys().chain(second.keys().filter(|key| !first.contains_key(*key)));
        for key in keys {
            let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
            let (first, second) = (first.get(key), second.get(key));
            differences(&at, first.unwrap_or(&Value::Null), second.unwrap_or(&Value::Null), found);
        }
    } else if first != second {
        found.push(format!("{at} is {second}, not {first}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_by_their_path() {
        let mut found = Vec::new();
        let (first, second) = (json!({"a": {"b": 1, "c": 2}, "d": 3}), json!({"a": {"b": 1, "c": 5}, "e": 3}));
        differences("", &first, &second, &mut found);
        assert_eq!(found, ["a.c is 5, not 2", "d is null, not 3", "e is 3, not null"]);
    }
}
