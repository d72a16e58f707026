//! The prefix of a domain's lines, and its log, follow the domain's name.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use pvrt::executor::{block_on_test, time};

use super::Consoles;
use super::tests::{DOMAIN, consoles, guest};

#[test]
fn a_renamed_domain_has_its_new_name_before_its_lines() {
    let (consoles, lines) = consoles();
    let mut guest = guest();
    block_on_test(async {
        consoles.add(DOMAIN, "web", guest.port.number()).unwrap();
        guest.say("one\n");
        time::sleep(1000).await;
        let long = "x".repeat(255);
        for name in ["other", &long] {
            consoles.rename(DOMAIN, name);
            guest.say("two\n");
            time::sleep(1000).await;
            assert_eq!(lines.lock().pop(), Some(format!("(d3 {name}) two")));
        }
        assert_eq!(*lines.lock(), ["(d3 web) one"]);
        // The last lines have the new name too, and so does the log.
        guest.say("the end\n");
        consoles.remove(DOMAIN);
        assert_eq!(lines.lock().last(), Some(&format!("(d3 {long}) the end")));
        assert!(consoles.kept("web").iter().all(Option::is_none));
        assert!(consoles.kept(&long)[0].is_some());
        consoles.rename(DOMAIN, "gone");
    });
}

/// The log of a name: of the domain that has ended, and of the domain that runs.
fn logs(consoles: &Consoles, name: &str) -> [Option<Vec<String>>; 2] {
    let text = |line: &[u8]| String::from_utf8(line.to_vec()).unwrap();
    consoles.kept(name).map(|kept| kept.map(|kept| kept.lines().map(|(_, line)| text(line)).collect()))
}

#[test]
fn a_console_is_kept_with_its_times_beyond_its_domains_end() {
    let (consoles, _) = consoles();
    let mut guest = guest();
    block_on_test(async {
        assert_eq!(logs(&consoles, "web"), [None, None]);
        consoles.add(DOMAIN, "web", guest.port.number()).unwrap();
        let begun = time::wall_ns();
        guest.say("one\r\ntwo\n");
        time::sleep(5_000_000_000).await;
        guest.say("three\n");
        time::sleep(1000).await;
        assert_eq!(logs(&consoles, "web"), [None, Some(vec!["one".into(), "two".into(), "three".into()])]);
        let [_, live] = consoles.kept("web");
        let times: Vec<u64> =
            live.unwrap().lines().map(|(time, _)| (time.0 - begun) / 1_000_000_000).collect();
        assert_eq!(times, [0, 0, 5]);
        // The domain sends no event for its last output, and another domain of that name starts.
        guest.ring.write(b"panic\n").unwrap();
        consoles.remove(DOMAIN);
        let ended = Some(vec!["one".into(), "two".into(), "three".into(), "panic".into()]);
        assert_eq!(logs(&consoles, "web"), [ended.clone(), None]);
    });
}
