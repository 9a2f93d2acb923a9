//! The cells of a sweep: every combination of the values of some keys, or some of them by chance.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::config::list_of_setting;
use crate::exit::Usage;
use crate::rng::{Purpose, Stream};

/// The most cells: more are a mistake in the grid.
const MOST_CELLS: usize = 10_000;

/// One combination: `key=value` for each key of the grid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// In the order of the grid.
    pub settings: Vec<String>,
}

/// The cells of `KEY=[VALUE, …]` lists, the last key changing fastest; of `trials` cells a seed chooses which.
///
/// # Errors
/// If a list is no list, a key stands twice, or a configuration is not valid with some cell's values.
pub fn cells(grid: &[String], trials: Option<usize>, seed: u32) -> Result<Vec<Cell>> {
    if grid.is_empty() {
        let message = "--grid is missing: give the values to try, such as --grid train.learning_rate=[1e-4,5e-4]";
        return Err(Usage(message.to_owned()).into());
    }
    let mut cells = vec![Cell { settings: Vec::new() }];
    let mut keys: Vec<String> = Vec::new();
    for entry in grid {
        let (key, values) = list_of_setting(entry)?;
        if keys.contains(&key) {
            bail!("--grid {key}: stands twice");
        }
        ensure!(
            !key.starts_with("exp."),
            "--grid {key}: seeds and places are the same for all cells; a sweep is over others"
        );
        ensure!(cells.len().saturating_mul(values.len()) <= MOST_CELLS, "--grid: more than {MOST_CELLS} cells");
        cells = cells
            .iter()
            .flat_map(|cell| {
                let with = |value: &String| Cell { settings: [&*cell.settings, &[format!("{key}={value}")]].concat() };
                values.iter().map(with).collect::<Vec<_>>()
            })
            .collect();
        keys.push(key);
    }
    Ok(match trials {
        Some(trials) if trials < cells.len() => some_of(cells, trials, seed),
        _ => cells,
    })
}

/// Some cells, in the order of the grid.
fn some_of(cells: Vec<Cell>, count: usize, seed: u32) -> Vec<Cell> {
    let mut keys = vec![0.0; cells.len()];
    Stream::new(seed, 0, 0, Purpose::Trainable).uniform(0, 1.0, &mut keys);
    let mut order: Vec<usize> = (0..cells.len()).collect();
    order.sort_by(|&a, &b| keys[a].total_cmp(&keys[b]));
    order.truncate(count);
    order.sort_unstable();
    order.into_iter().map(|index| cells[index].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(grid: &[&str], trials: Option<usize>) -> Result<Vec<Vec<String>>> {
        let grid: Vec<String> = grid.iter().map(|&entry| entry.to_owned()).collect();
        Ok(cells(&grid, trials, 3)?.into_iter().map(|cell| cell.settings).collect())
    }

    #[test]
    fn a_grid_is_every_combination_and_trials_are_some_of_them() {
        let grid = ["train.learning_rate=[1e-4, 0.5]", "model.lora_r=[2, 4, 8]"];
        let all = of(&grid, None).unwrap();
        assert_eq!(all.len(), 6);
        assert_eq!(all[1], ["train.learning_rate=0.0001", "model.lora_r=4"]);
        assert_eq!(all[5], ["train.learning_rate=0.5", "model.lora_r=8"]);
        let some = of(&grid, Some(4)).unwrap();
        assert_eq!(some.len(), 4);
        let places: Vec<usize> = some.iter().map(|cell| all.iter().position(|other| other == cell).unwrap()).collect();
        assert!(places.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(of(&grid, Some(4)).unwrap(), some);
        assert_eq!(of(&grid, Some(60)).unwrap(), all);
        let lists = of(&["model.lora_target_modules=[[q_proj, v_proj], all-linear, null]"], None).unwrap();
        let values: Vec<&str> = lists.iter().map(|cell| cell[0].split_once('=').unwrap().1).collect();
        assert_eq!(values, ["[q_proj, v_proj]", "all-linear", "null"]);
    }

    #[test]
    fn grids_that_mean_nothing_are_refused() {
        for (grid, part) in [
            (&[][..], "--grid is missing"),
            (&["train.learning_rate=1e-4"], "expected KEY=["),
            (&["train.learning_rate=[]"], "expected KEY=["),
            (&["train.learning_rate=[1e-4", "x=[1]"], "not valid YAML"),
            (&["train.learning_rate"], "expected KEY="),
            (&["model.lora_r=[1]", "model.lora_r=[2]"], "stands twice"),
            (&["exp.seeds=[1]"], "the same for all cells"),
        ] {
            let error = of(grid, None).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
