//! `xl save` and `xl restore`.

use alloc::format;

use pvrt::println;

use super::{Line, json, saved_config};
use crate::commands::{Outcome, Shell};
use crate::shell::print::shown;
use crate::toolstack::After;

impl Shell {
    /// `xl save [-c] [-p] DOMAIN FILE [CONFIG]`.
    pub(super) async fn xl_save(&self, line: &Line<'_>) -> Outcome {
        let (name, path) = (line.operands[0], line.operands[1]);
        let domain = self.toolstack.find(name)?;
        let after = match (line.has("c"), line.has("p")) {
            (true, true) => return Err(line.wrong("-c and -p exclude each other")),
            (true, false) => After::GoOn,
            (false, true) => After::Pause,
            (false, false) => After::Destroy,
        };
        let config = match line.operands.get(2) {
            Some(file) => self.configuration_file(file).await?,
            None => (*domain.config).clone(),
        };
        let text = json::of_domain(&config, &domain.name, &domain.uuid)?;
        // What cannot be read again is said while the domain still runs.
        saved_config::read(&text).map_err(|why| format!("{name}: its configuration: {why}"))?;
        println!("Saving to {} new xl format (info 0x3/0x0/{})", shown(path), text.len() + 5);
        let bytes = self.toolstack.save(&domain, path, &text, after).await?;
        println!("{}: {bytes} bytes are in {}", shown(&domain.name), shown(path));
        Ok(())
    }

    /// `xl restore [-p] [-d] [CONFIG] FILE`.
    pub(super) async fn xl_restore(&self, line: &Line<'_>) -> Outcome {
        let (path, config) = match line.operands[..] {
            [path] => (path, None),
            [config, path, ..] => (path, Some(config)),
            [] => return Err(line.command.usage()),
        };
        println!("Loading new save file {} (new xl fmt info 0x3/0x0)", shown(path));
        let saved = self.toolstack.open_saved(path).await?;
        let config = match config {
            Some(file) => self.configuration_file(file).await?,
            None => {
                let (config, warnings) =
                    saved_config::read(&saved.config).map_err(|why| format!("{path}: {why}"))?;
                for warning in warnings {
                    println!("warning: {}", shown(&warning));
                }
                config
            }
        };
        if line.has("d") {
            json::print(&json::domain(&config, config.uuid.as_ref())).await?;
        }
        let domain = self.toolstack.restore(saved, config).await.map_err(|why| format!("{path}: {why}"))?;
        if line.has("p") {
            return Ok(());
        }
        self.start(&domain).await
    }
}
