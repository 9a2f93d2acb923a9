//! The pooling that sentence-transformers trained a base with: such a base knows little in its other states.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::config::model::{Form, PoolingMode};
use crate::console::Console;
use crate::embedded;
use crate::hub::model_files::ModelFiles;
use crate::model::config::BackboneConfig;

/// The pooling that a base was trained with, if its family's classifiers have another; the Hub is asked if need be.
///
/// # Errors
/// If the Hub cannot be asked, or the file is not what sentence-transformers writes.
pub fn of_base(files: &ModelFiles, config: &BackboneConfig, console: Console) -> Result<Option<PoolingMode>> {
    files.sentence_pooling(None, console)?.map_or(Ok(None), |path| read(&path, config))
}

/// Points to the pooling that a base was trained with, if its family's classifiers have another. The Hub is not asked, and
/// a file that cannot be read says nothing.
pub fn suggest(files: &ModelFiles, config: &BackboneConfig, console: Console) {
    let Some(path) = files.local_sentence_pooling() else { return };
    if let Ok(Some(pooling)) = read(&path, config) {
        let pooling = Form { pooling: Some(pooling), ..Form::default() };
        console.say(format!(
            "hint: {} was trained for sentences with {pooling}, which its family's classifiers do not use; set model.pooling \
             to it, unless Python is to load the result",
            files.name
        ));
    }
}

fn read(path: &Path, config: &BackboneConfig) -> Result<Option<PoolingMode>> {
    let text = embedded::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let pooling: Map<String, Value> =
        serde_json::from_str(&text).with_context(|| format!("{}: is no JSON object", path.display()))?;
    let Some(pooling) = mode(&pooling) else { return Ok(None) };
    let form = Form { pooling: Some(pooling), ..Form::default() };
    // No form at all for the first token of a causal model.
    Ok(config.clone().set_form(form).ok().and_then(|changed| changed.pooling))
}

/// The one mode that is on; several are joined to one vector, which no head here reads.
fn mode(pooling: &Map<String, Value>) -> Option<PoolingMode> {
    let mut on = pooling.iter().filter(|(key, is_on)| key.starts_with("pooling_mode_") && **is_on == json!(true));
    let (key, _) = on.next()?;
    let mode = match key.as_str() {
        "pooling_mode_cls_token" => PoolingMode::First,
        "pooling_mode_mean_tokens" => PoolingMode::Mean,
        "pooling_mode_lasttoken" => PoolingMode::Last,
        _ => return None,
    };
    on.next().is_none().then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mode_that_the_head_can_read_is_taken() {
        let of = |value: Value| mode(value.as_object().unwrap());
        let mean =
            json!({"word_embedding_dimension": 384, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true});
        assert_eq!(of(mean), Some(PoolingMode::Mean));
        assert_eq!(of(json!({"pooling_mode_lasttoken": true, "include_prompt": true})), Some(PoolingMode::Last));
        assert_eq!(of(json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true})), None);
        assert_eq!(of(json!({"pooling_mode_max_tokens": true})), None);
        assert_eq!(of(json!({})), None);
    }
}
