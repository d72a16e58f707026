//! The language, by examples and by noise.

use proptest::prelude::{any, prop, prop_assert_eq, proptest};

use super::*;
use crate::config::{Config, FILE_MAX, VALUES_MAX, ValueKind, is_setting_word};

fn kind(text: &str) -> ValueKind {
    let config = Config::parse("t", text.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.settings().len(), 1, "{text}");
    config.settings()[0].value.kind.clone()
}

fn texts(text: &str) -> Vec<String> {
    let ValueKind::List(list) = kind(text) else { panic!("{text}") };
    list.iter().map(|value| value.text().map_or("[]".to_owned(), |text| text.into_owned())).collect()
}

fn error(text: &str) -> String {
    Config::parse("t", text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn strings() {
    for (text, want) in [
        ("a=''", ""),
        ("a='x y # ; \"'", "x y # ; \""),
        ("a=\"it's\"", "it's"),
        (r#"a = "q\"b\\n\n\t\x41\101\'" "#, "q\"b\\n\n\tAA'"),
        ("a='one \\\ntwo'", "one two"),
        ("a=\\\n  'x'", "x"),
        ("a='ü'", "ü"),
    ] {
        assert_eq!(kind(text), ValueKind::Text(want.into()), "{text}");
    }
}

#[test]
fn numbers() {
    for (text, want) in [
        ("0", 0),
        ("64", 64),
        ("0x40", 64),
        ("0XfF", 255),
        ("0100", 64),
        ("18446744073709551615", u64::MAX),
        ("0xffffffffffffffff", u64::MAX),
    ] {
        assert_eq!(kind(&format!("a={text}")), ValueKind::Number(want, text.to_owned()));
    }
    for bad in ["18446744073709551616", "08", "0x", "12z", "1_000", "0x+1"] {
        assert!(error(&format!("a={bad}")).starts_with("t:1:3: expected a number"), "{bad}");
    }
}

#[test]
fn lists() {
    assert!(texts("a=[]").is_empty());
    assert!(texts("a=[ \n # none\n ]").is_empty());
    assert_eq!(texts("a=['x']"), ["x"]);
    assert_eq!(texts("a = [ 'x', # one\n\n \"y\"\n, 0x3,\n]"), ["x", "y", "0x3"]);
    assert_eq!(texts("a=[['x',1],'y',]"), ["[]", "y"]);
    assert!(error("a=[,]").contains("t:1:4: expected a string in quotes, a number or a list, found `,`"));
    assert!(error("a=['x' 'y']").contains("t:1:8: expected `,` or `]`, found `'`"));
    assert!(error("a=['x'").contains("t:1:7: expected `,` or `]`, found the end"));
    let deep = |depth: usize| format!("a={}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(Config::parse("t", deep(DEPTH_MAX).as_bytes()).is_ok());
    assert!(error(&deep(DEPTH_MAX + 1)).contains("fewer lists"));
    assert!(error(&"a=[".repeat(20_000)).contains("expected"));
}

#[test]
fn statements() {
    let config = Config::parse("t", b"# c\n\na = 1; b='2' # x\r\n;;c\\\n=[3]\n a = 4").unwrap();
    let keys: Vec<_> = config.settings().iter().map(|setting| setting.key.as_str()).collect();
    assert_eq!(keys, ["a", "b", "c"]);
    assert_eq!(config.get("a").unwrap().value.text().as_deref(), Some("4"));
    assert_eq!(config.get("a").unwrap().position.to_string(), "t:6:2");
    assert_eq!(config.get("c").unwrap().value.position.to_string(), "t:5:2");
    assert!(Config::parse("t", b"").unwrap().settings().is_empty());
}

#[test]
fn additions() {
    assert_eq!(texts("a=['x']\na+=['y','z']"), ["x", "y", "z"]);
    assert_eq!(kind("a='x'\na += 'y'"), ValueKind::Text(b"xy".to_vec()));
    assert_eq!(texts("a+=['y']"), ["y"]);
    assert!(error("a=['x']\na+='y'").contains("t:2:4: a: a string cannot be added to a list"));
    assert!(error("a=1\na+=2").contains("t:2:4: a: a number cannot be added to a number"));
}

#[test]
fn errors_say_where_and_what() {
    for (text, want) in [
        ("\n  name = foo", "t:2:10: expected a string in quotes, a number or a list, found `f`"),
        ("name 'x'", "t:1:6: expected `=` or `+=`, found `'`"),
        ("name = ", "t:1:8: expected a string in quotes, a number or a list, found the end"),
        ("name =\n'x'", "t:1:7: expected a string in quotes, a number or a list, found the end of the line"),
        ("= 1", "t:1:1: expected a key, found `=`"),
        ("VCPUS=1", "t:1:1: expected a key, found `V`"),
        ("a=1 b=2", "t:1:5: expected a new line or `;`, found `b`"),
        ("a='x", "t:1:5: expected a closing `'`, found the end"),
        ("a=\"x\ny\"", "t:1:5: expected a closing `\"`, found the end of the line"),
        ("é='x'", "t:1:1: expected a key, found `é`"),
        ("a='é' é", "t:1:7: expected a new line or `;`, found `é`"),
        ("a='\\q'", "t:1:5: expected one of"),
        ("a='\\xf'\0", "t:1:8: expected a new line or `;`, found `\\u{0}`"),
        ("a='\\000'", "t:1:5: expected the number of a byte, not zero"),
        ("a='\\777'", "t:1:5: expected the number of a byte, not zero"),
        ("a='x\0y'", "t:1:5: expected a closing `'`, found `\\u{0}`"),
    ] {
        assert!(error(text).starts_with(want), "{text:?}: {}", error(text));
    }
    let error = Config::parse("t", b"a='\xe9'\n\xff").unwrap_err().to_string();
    assert_eq!(error, "t:2:1: expected a key, found the byte 0xff");
}

#[test]
fn any_bytes_but_zero_are_text() {
    let config = Config::parse("t", b"# caf\xe9\na='\xe9\xff'; b=\"\\xe9\" # \x80\nc='\xc3\xa9'").unwrap();
    let value = |key: &str| &config.get(key).unwrap().value;
    assert_eq!(
        (value("a").bytes(), value("a").text().as_deref()),
        (Some(&b"\xe9\xff"[..]), Some("\u{e9}\u{ff}"))
    );
    assert_eq!(value("b").bytes(), Some(&b"\xe9"[..]));
    assert_eq!((value("c").bytes(), value("c").text().as_deref()), (Some(&b"\xc3\xa9"[..]), Some("\u{e9}")));
    assert_eq!(value("c").position.to_string(), "t:3:3");
}

#[test]
fn words() {
    let word = |text: &str| {
        let mut config = Config::empty("t");
        config.add_word(text).map(|()| config.settings()[0].value.kind.clone())
    };
    let text = |text: &str| Ok(ValueKind::Text(text.into()));
    assert_eq!(word("name=foo"), text("foo"));
    assert_eq!(word("name='foo'"), text("foo"));
    assert_eq!(word("extra=a b=c"), text("a b=c"));
    assert_eq!(word("name="), text(""));
    assert_eq!(word("name=3com"), text("3com"));
    assert_eq!(word("memory=0x40"), Ok(ValueKind::Number(64, "0x40".to_owned())));
    for disk in
        ["disk=['phy:/dev/vda,xvda,w']", "disk=[phy:/dev/vda,xvda,w]", "disk=[ \"phy:/dev/vda,xvda,w\", ]"]
    {
        let Ok(ValueKind::List(list)) = word(disk) else { panic!("{disk}") };
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].text().as_deref(), Some("phy:/dev/vda,xvda,w"));
    }
    assert_eq!(word("vif=[]"), Ok(ValueKind::List(Vec::new())));
    assert_eq!(word("extra=a; b"), text("a; b"));
    assert_eq!(word("name=foo;memory=16"), text("foo;memory=16"));
    let error = |text: &str| word(text).unwrap_err().to_string();
    assert!(error("name='x").starts_with("command line:1:8: expected a closing `'`"));
    assert!(error("d=['x',y]").starts_with("command line:1:8: expected a string"));
    assert!(error("name='x'y").starts_with("command line:1:9: expected a new line or `;`, found `y`"));
    assert!(error("name='x';memory=a").starts_with("command line:1:17: expected a string"));
    assert!(error("foo").starts_with("command line:1:4: expected `=` or `+=`"));
    assert!(error("").starts_with("command line:1:1: expected a key"));
    for setting in ["a=b", "a+=['b']", " \n a = 'b'", ";a=1"] {
        assert!(is_setting_word(setting), "{setting}");
    }
    for other in ["-c", "/boot/a=b", "hello.cfg", "", "\n"] {
        assert!(!is_setting_word(other), "{other}");
    }
}

#[test]
fn a_word_is_a_text_of_its_own() {
    let mut config = Config::empty("t");
    let disk = "disk=[ 'a',\n 'b' ] # two\nvcpus = 2";
    for text in ["name=\"semi\";memory=16", disk, "extra='x';extra+='y'\n", "disk+=['c']", "maxmem=0x20"] {
        config.add_word(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    let all: Vec<_> =
        config.settings().iter().map(|setting| (setting.key.as_str(), &setting.value)).collect();
    let keys: Vec<_> = all.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, ["name", "memory", "disk", "vcpus", "extra", "maxmem"]);
    assert_eq!(all[4].1.text().as_deref(), Some("xy"));
    let ValueKind::List(disks) = &all[2].1.kind else { panic!("{all:?}") };
    assert_eq!(disks.len(), 3);
    // The line is the number of the word, however many lines it has.
    assert_eq!(config.get("vcpus").unwrap().position.to_string(), "command line:2:26");
    assert_eq!(config.get("disk").unwrap().position.to_string(), "command line:4:1");
}

#[test]
fn words_come_after_the_file() {
    let mut config = Config::parse("t", b"disk=['a']\nname='x'").unwrap();
    config.add_word("name=y").unwrap();
    config.add_word("disk+=['b']").unwrap();
    assert_eq!(config.get("name").unwrap().value.text().as_deref(), Some("y"));
    assert_eq!(config.get("disk").unwrap().position.to_string(), "command line:2:1");
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Config::parse("t", &bytes);
    }

    #[test]
    fn near_misses_are_survived(text in r#"[a=+\['",\]\\\n#; 0x7é]{0,60}"#) {
        let _ = Config::parse("t", text.as_bytes());
        let _ = Config::empty("t").add_word(&text);
    }
}

#[test]
fn a_file_is_no_longer_than_is_stated() {
    let mut text = b"a=1\n#".to_vec();
    text.resize(FILE_MAX, b'x');
    assert!(Config::parse("t.cfg", &text).is_ok());
    text.push(b'x');
    let error = Config::parse("t.cfg", &text).unwrap_err().to_string();
    assert_eq!(error, "t.cfg: 65537 bytes: a configuration has at most 65536");
}

#[test]
fn a_configuration_has_no_more_values_than_is_stated() {
    let list = |count: usize| format!("a=[{}]\n", "1,".repeat(count - 1));
    let mut config = Config::parse("t.cfg", list(VALUES_MAX).as_bytes()).unwrap();
    // Words of the command line count too, bare or not.
    assert!(config.add_word("b=x").unwrap_err().to_string().contains("more than 512 values"));
    let mut config = Config::parse("t.cfg", list(VALUES_MAX - 1).as_bytes()).unwrap();
    assert_eq!(config.add_word("b=x y"), Ok(()));
    assert!(config.add_word("b=x").is_err());
    let same = "a=1\n".repeat(VALUES_MAX);
    assert!(Config::parse("t.cfg", same.as_bytes()).is_ok());
    for text in [list(VALUES_MAX + 1), same + "a=1", format!("a={}", "[1,[1],".repeat(VALUES_MAX))] {
        let error = Config::parse("t.cfg", text.as_bytes()).unwrap_err();
        assert!(error.position.is_some());
        let error = error.to_string();
        assert!(error.contains("t.cfg: more than 512 values") || error.contains("fewer lists"), "{error}");
    }
}

#[test]
fn of_many_unknown_keys_some_are_named_and_the_rest_counted() {
    use crate::config::DomainConfig;
    let unknown = (0..500).fold(String::new(), |all, at| format!("{all}k{at}=1\n"));
    let text = format!("{unknown}name='x'\nkernel='k'\n");
    let config = Config::parse("t.cfg", text.as_bytes()).unwrap();
    let (_, warnings) = DomainConfig::from_config(&config).unwrap();
    assert_eq!(warnings.len(), 33);
    assert_eq!(warnings[31].to_string(), "t.cfg:32:1: k31: unknown key, ignored");
    assert_eq!(warnings[32].to_string(), "t.cfg: and 468 keys more that are ignored");
}

#[test]
fn a_string_is_no_longer_than_is_stated() {
    for piece in ["x", "\\x1b", "ü"] {
        let bytes = if piece == "ü" { 2 } else { 1 };
        let text = |count: usize| format!("a='{}'", piece.repeat(count));
        assert!(Config::parse("t", text(2048 / bytes).as_bytes()).is_ok(), "{piece}");
        let error = Config::parse("t", text(2048 / bytes + 1).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("expected a string of at most 2048 bytes"), "{error}");
    }
}

#[test]
fn a_domain_has_no_more_disks_than_are_served() {
    use crate::config::DomainConfig;
    let disks = |count: usize| {
        let list = (0..count).fold(String::new(), |all, at| format!("{all}'phy:/d{at},hda,w',"));
        let text = format!("name='x'\nkernel='k'\ndisk=[{list}]");
        DomainConfig::from_config(&Config::parse("t.cfg", text.as_bytes()).unwrap()).unwrap_err().to_string()
    };
    assert!(disks(16).contains("given twice"), "{}", disks(16));
    assert!(disks(17).contains("at most 16 disks"), "{}", disks(17));
}

#[test]
fn others_run_while_a_file_is_read() {
    use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    let turns = std::sync::Arc::new(AtomicUsize::new(0));
    let others = turns.clone();
    let read = pvrt::executor::block_on_test(async move {
        pvrt::spawn(async move {
            loop {
                others.fetch_add(1, Relaxed);
                pvrt::yield_now().await;
            }
        });
        Config::read("t.cfg", "a=1\n".repeat(500).as_bytes()).await
    });
    assert_eq!(read, Config::parse("t.cfg", b"a=1\n".repeat(500).as_slice()));
    assert!(turns.load(Relaxed) >= 500 / 16, "{turns:?}");
}

proptest! {
    /// Each value's position equals a count from the text's start.
    #[test]
    fn places_are_counted_right(pieces in prop::collection::vec("[ \nü]{0,3}", 1..20)) {
        // Every entry of a list in several lines.
        let list: String = pieces.iter().map(|blanks| format!("{}'{blanks}ü',", blanks.replace('ü', " "))).collect();
        let list = list.replace('\n', "\\\n");
        let text = format!("k=[{list}]");
        let config = Config::parse("t", text.as_bytes()).unwrap();
        let ValueKind::List(values) = &config.settings()[0].value.kind else { panic!() };
        let mut from = 0;
        for value in values {
            from += text[from..].find('\'').unwrap();
            let before = &text[..from];
            let line = before.matches('\n').count() as u32 + 1;
            let column = before.rsplit('\n').next().unwrap().chars().count() as u32 + 1;
            prop_assert_eq!((value.position.line, value.position.column), (line, column));
            from += 1 + text[from + 1..].find('\'').unwrap() + 1;
        }
    }
}
