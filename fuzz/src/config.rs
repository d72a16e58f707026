//! `xl.cfg` files and the words of `xl create`.

use dom0::config::{Config, CpuSet, DiskConfig, DomainConfig, VifConfig, vdev_number};

/// The first line says which parser; the rest is its text.
pub(crate) fn run(data: &[u8]) {
    let (kind, text) = data.split_first().unwrap_or((&0, &[]));
    let words = String::from_utf8_lossy(text);
    match kind {
        b'd' => {
            let _ = DiskConfig::parse(&words);
        }
        b'v' => {
            let _ = VifConfig::parse(&words);
        }
        b'c' => {
            let _ = CpuSet::parse(&words);
        }
        b'n' => {
            let _ = vdev_number(&words);
        }
        b'w' => {
            let mut config = Config::empty("fuzz");
            for word in words.split('\n') {
                if config.add_word(word).is_err() {
                    return;
                }
            }
            let _ = DomainConfig::from_config(&config);
        }
        _ => match Config::parse("fuzz", text) {
            Ok(config) => match DomainConfig::from_config(&config) {
                Ok((_, warnings)) => {
                    warnings.iter().for_each(|warning| assert!(!warning.to_string().is_empty()))
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            },
            Err(error) => assert!(!error.to_string().is_empty()),
        },
    }
}
