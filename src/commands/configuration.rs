//! The configuration that `--config` and `--set` name.

use anyhow::Result;

use crate::cli::ConfigArgs;
use crate::config::Config;
use crate::exit::Usage;

/// The configuration that the flags name; `None` if they name none.
pub(super) fn load(args: &ConfigArgs) -> Result<Option<Config>> {
    if args.config.is_empty() {
        if !args.set.is_empty() {
            return Err(Usage("--set needs --config: it changes a key of a configuration".to_owned()).into());
        }
        return Ok(None);
    }
    let mut config = Config::load(&args.config, &args.set)?;
    if let Some(root) = &args.override_output_root {
        config.exp.output_root.clone_from(root);
    }
    Ok(Some(config))
}
