//! Reads keys of a configuration by type, and warns of those without effect.

use alloc::borrow::{Cow, ToOwned};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::config::keys::{self, Fate};
use crate::config::syntax;
use crate::config::value::{Config, Diagnostic, Setting, Value, ValueKind};

/// The most warnings that are shown; of further ones only the number is.
const WARNINGS_MAX: usize = 32;

/// Takes keys out of a configuration.
pub(super) struct Reader<'a> {
    pub(super) config: &'a Config,
    /// Warnings about parts of values.
    notes: Vec<Diagnostic>,
}

pub(super) fn wrong(setting: &Setting, value: &Value, text: impl Into<String>) -> Diagnostic {
    Diagnostic { position: Some(value.position.clone()), key: Some(setting.key.clone()), text: text.into() }
}

impl<'a> Reader<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        Self { config, notes: Vec::new() }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<&'a Setting> {
        debug_assert!(keys::find(key).is_some_and(|key| key.fate == Fate::Done), "{key} is not in the table");
        self.config.get(key)
    }

    pub(super) fn text(
        &mut self,
        key: &'static str,
    ) -> Result<Option<(&'a Setting, Cow<'a, str>)>, Diagnostic> {
        let Some(setting) = self.take(key) else { return Ok(None) };
        let text = setting.value.text().ok_or_else(|| wrong(setting, &setting.value, "expected a string"))?;
        Ok(Some((setting, text)))
    }

    pub(super) fn string(&mut self, key: &'static str) -> Result<Option<String>, Diagnostic> {
        Ok(self.text(key)?.map(|(_, text)| text.into_owned()))
    }

    /// A string's bytes, unchanged.
    pub(super) fn bytes(&mut self, key: &'static str) -> Result<Option<&'a [u8]>, Diagnostic> {
        let Some(setting) = self.take(key) else { return Ok(None) };
        let bytes = setting.value.bytes();
        bytes.map(Some).ok_or_else(|| wrong(setting, &setting.value, "expected a string"))
    }

    pub(super) fn number(
        &mut self,
        key: &'static str,
        min: u64,
        max: u64,
    ) -> Result<Option<u64>, Diagnostic> {
        let Some(setting) = self.take(key) else { return Ok(None) };
        let number = match &setting.value.kind {
            ValueKind::Number(number, _) => Some(*number),
            // Many files put numbers in quotes.
            ValueKind::Text(_) => {
                setting.value.text().and_then(|text| syntax::parse_number(text.trim_ascii()))
            }
            ValueKind::List(_) => None,
        };
        let number = number.ok_or_else(|| wrong(setting, &setting.value, "expected a number"))?;
        if !(min..=max).contains(&number) {
            let text = format!("{number} is out of range: {min} to {max}");
            return Err(wrong(setting, &setting.value, text));
        }
        Ok(Some(number))
    }

    pub(super) fn small(&mut self, key: &'static str, min: u32, max: u32) -> Result<Option<u32>, Diagnostic> {
        // The number is within the bounds, so it fits.
        Ok(self.number(key, min.into(), max.into())?.map(|number| number as u32))
    }

    pub(super) fn list(
        &mut self,
        key: &'static str,
    ) -> Result<Option<(&'a Setting, &'a [Value])>, Diagnostic> {
        let Some(setting) = self.take(key) else { return Ok(None) };
        match &setting.value.kind {
            ValueKind::List(list) => Ok(Some((setting, list))),
            _ => Err(wrong(setting, &setting.value, "expected a list")),
        }
    }

    /// Reads the entries of a list; each may add warnings.
    pub(super) fn entries<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<(T, Vec<String>), String>,
    ) -> Result<Vec<T>, Diagnostic> {
        let Some((setting, list)) = self.list(key)? else { return Ok(Vec::new()) };
        let mut entries = Vec::new();
        for value in list {
            let text = value.text().ok_or_else(|| wrong(setting, value, "expected a string"))?;
            let (entry, notes) = parse(&text).map_err(|error| wrong(setting, value, error))?;
            entries.push(entry);
            let room = WARNINGS_MAX.saturating_sub(self.notes.len());
            self.notes.extend(notes.into_iter().take(room).map(|note| wrong(setting, value, note)));
        }
        Ok(entries)
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
        default: T,
    ) -> Result<T, Diagnostic> {
        let Some((setting, text)) = self.text(key)? else { return Ok(default) };
        let found = choices.iter().find(|(name, _)| *name == text);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
            wrong(setting, &setting.value, format!("`{text}`: expected one of {}", names.join(", ")))
        })
    }

    pub(super) fn missing(&self, key: &str) -> Diagnostic {
        let text = format!("{}: no `{key}` is given", self.config.name);
        Diagnostic { position: None, key: None, text }
    }

    /// Fails on the first key that is refused.
    pub(super) fn refused(&self) -> Result<(), Diagnostic> {
        let refused =
            |setting: &&Setting| keys::find(&setting.key).is_some_and(|key| key.fate == Fate::Refused);
        match self.config.settings().iter().find(refused) {
            Some(setting) => {
                let why = keys::find(&setting.key).map_or("", |key| key.why);
                Err(Diagnostic {
                    position: Some(setting.position.clone()),
                    key: Some(setting.key.clone()),
                    text: why.into(),
                })
            }
            None => Ok(()),
        }
    }

    /// The warnings about keys without effect, whether the configuration is valid or not.
    pub(super) fn warnings(&mut self) -> Vec<Diagnostic> {
        let has_cmdline = self.config.get("cmdline").is_some();
        let warn = |setting: &'a Setting| {
            let text = match keys::find(&setting.key) {
                None => "unknown key, ignored".to_owned(),
                Some(key) if key.fate == Fate::Ignored => format!("ignored: {}", key.why),
                Some(_) if matches!(setting.key.as_str(), "root" | "extra") && has_cmdline => {
                    "ignored, as `cmdline` is given".to_owned()
                }
                Some(_) => return None,
            };
            Some((setting, text))
        };
        let mut all = self.config.settings().iter().filter_map(warn);
        let told = all.by_ref().take(WARNINGS_MAX).map(|(setting, text)| Diagnostic {
            position: Some(setting.position.clone()),
            key: Some(setting.key.clone()),
            text,
        });
        let mut warnings: Vec<Diagnostic> = told.collect();
        let more = all.count();
        if more > 0 {
            let text = format!("{}: and {more} keys more that are ignored", self.config.name);
            warnings.push(Diagnostic { position: None, key: None, text });
        }
        warnings.append(&mut self.notes);
        warnings
    }
}
