//! C21, C22. `json.dump` raises in the middle of a document, `with` closes the file in good order,
//! and the configuration is now `{"a": 1, "b": `. No signal, no failed write: only looking at the
//! content tells. Here an incomplete document never gets a guarded name, and the error is found
//! also by those who ignore close().

mod common;

use common::{Actor, Mount, assert_content, assert_errno, commitfs, stamped};

const WHOLE: &str = "{\"step\": 100, \"loss\": 0.5}\n";

fn with_document() -> Option<Mount> {
    let m = Mount::options().mount()?;
    m.save("state.json", WHOLE);
    Some(m)
}

macro_rules! with_document {
    () => {
        match with_document() {
            Some(mount) => mount,
            None => return,
        }
    };
}

#[track_caller]
fn assert_kept(m: &Mount, what: &str) {
    assert_content(m.read("state.json"), WHOLE.as_bytes(), what);
}

#[test]
fn half_a_json_document_fails_the_close_and_leaves_the_old_one() {
    let m = with_document!();
    let halves = [
        "{\"step\": 101, \"lo",
        "{",
        "[1, 2",
        "\"text",
        "{\"a\": tru",
        "nope",
    ];
    let mut writer = Actor::new();
    for (count, half) in halves.iter().enumerate() {
        writer.open("f", "w", &m.path("state.json")).unwrap();
        writer.write("f", half).unwrap();
        assert_errno(writer.close("f"), "EBADMSG");
        assert_kept(&m, half);
        let rejected = m.await_rejected("state.json", half.as_bytes());
        assert_eq!(rejected.meta["pid"], writer.pid());
        assert_eq!(m.aborts("guard"), count as u64 + 1);
    }
    writer
        .save(&m.path("state.json"), "{\"step\": 102}")
        .unwrap();
    assert_content(
        m.read("state.json"),
        b"{\"step\": 102}",
        "a whole one goes through",
    );
}

#[test]
fn half_a_document_is_not_published_as_a_new_file_either() {
    let m = mount!();
    let mut writer = Actor::new();
    let failure = writer
        .save(&m.path("new.json"), "{\"a\": ")
        .expect_err("half a document");
    assert_eq!(
        (failure.errno.as_str(), failure.stage.as_str()),
        ("EBADMSG", "close")
    );
    assert!(!m.exists("new.json"));
    m.await_rejected("new.json", b"{\"a\": ");
}

#[test]
fn an_exception_in_the_middle_of_json_dump_leaves_the_old_document() {
    let m = with_document!();
    m.python(
        "import json\n\
         try:\n\
         \x20   with open('state.json', 'w') as f:\n\
         \x20       json.dump({'a': list(range(5000)), 'b': object()}, f)\n\
         except (TypeError, OSError):\n\
         \x20   pass\n",
    )
    .ok();
    assert_kept(&m, "after the exception");
    // Ctrl-C: Python closes the file first, and then ends itself by the signal.
    let run = m.python(
        "import json, signal, os\n\
         class Slow(dict):\n\
         \x20   def items(self):\n\
         \x20       yield 'a', 'x' * 20000\n\
         \x20       os.kill(os.getpid(), signal.SIGINT)\n\
         \x20       yield 'b', 1\n\
         with open('state.json', 'w') as f:\n\
         \x20   for part in json.JSONEncoder().iterencode(Slow(z=1)): f.write(part)\n",
    );
    assert_ne!(run.code, Some(0), "{run:?}");
    assert_kept(&m, "after KeyboardInterrupt");
}

#[test]
fn a_shell_that_drops_the_error_of_close_can_be_found_out() {
    let m = with_document!();
    m.sh("echo '{\"step\": ' > state.json; exit 0");
    assert_kept(&m, "after echo");
    let mut actor = Actor::new();
    let error = actor.getxattr(&m.path("state.json"), "user.commitfs.error");
    let error = String::from_utf8(error.expect("the last error is kept on the path")).unwrap();
    assert!(
        error.contains("guard") || error.contains("json"),
        "no reason in {error:?}"
    );
    assert!(
        error.chars().any(|c| c.is_ascii_digit()),
        "no time or pid in {error:?}"
    );
    if !common::plain() {
        let status = m.status();
        assert_eq!(status["errors"][0]["path"], "state.json", "{status}");
        assert!(
            status["errors"][0]["pid"]
                .as_i64()
                .is_some_and(|pid| pid > 1),
            "{status}"
        );
        m.sh("echo '{\"again\": ' > state.json");
        let told = m.command(&["status"]).fails();
        assert!(told.out.contains("state.json"), "{told:?}");
    }
}

#[test]
fn what_goes_wrong_in_its_middle_is_somebodys_will_unless_it_is_an_edit() {
    // The plain directory passes: a checkout with templates and fixtures has all its files.
    let m = with_document!();
    let mut writer = Actor::new();
    let odd = [
        "{{ cookiecutter.name }}",
        "{\"name\": ${NAME}, \"rest\": [",
        "{key: 'JSON5', trailing: [1,],}",
        "{\"a\": 1}}",
        "{\"a\": \u{0}}",
        "// nothing but a comment\n",
    ];
    for (count, content) in odd.iter().enumerate() {
        writer
            .save(&m.path("new.json"), content)
            .unwrap_or_else(|e| panic!("a new {content}: {e:?}"));
        assert_content(m.read("new.json"), content.as_bytes(), "a new file");
        writer.unlink(&m.path("new.json")).unwrap();
        if !content.starts_with("//") {
            m.save("over.json", WHOLE);
            writer
                .save(&m.path("over.json"), content)
                .unwrap_or_else(|e| panic!("{content} over a document: {e:?}"));
            assert_content(m.read("over.json"), content.as_bytes(), "a whole rewrite");
            m.save("temporary", content);
            m.save("named.json", WHOLE);
            let (from, to) = (m.path("temporary"), m.path("named.json"));
            writer.rename(&from, &to).expect("renamed over a document");
            if !common::plain() {
                let counted = m.status()["counters"]["malformed"].as_u64();
                assert_eq!(counted, Some(3 * (count as u64 + 1)), "{content}");
            }
        }
    }
    // An edit has to leave a whole document where there was one.
    writer.open("f", "r+", &m.path("state.json")).unwrap();
    writer.pwrite("f", 1, b"xy").unwrap();
    assert_errno(writer.close("f"), "EBADMSG");
    assert_kept(&m, "after an edit that spoils it");
    m.save("new.json", odd[0]);
    writer.open("f", "r+", &m.path("new.json")).unwrap();
    writer.pwrite("f", 3, b"template").unwrap();
    writer.close("f").expect("it was no document before either");
    // Who empties it first has chosen all of it.
    writer.open("f", "r+", &m.path("state.json")).unwrap();
    writer.ftruncate("f", 0).unwrap();
    writer.pwrite("f", 0, odd[0].as_bytes()).unwrap();
    writer.close("f").expect("a rewrite by other means");
    assert_content(m.read("state.json"), odd[0].as_bytes(), "rewritten");
}

#[test]
fn the_strict_guard_takes_nothing_but_json() {
    let m =
        mount!(Mount::options().rules("[[rule]]\nglob = \"*.json\"\nguard = \"json-strict\"\n"));
    let mut writer = Actor::new();
    for content in ["{{ template }}", "hello", "{}{}", "{\"a\": NaN}", "// none"] {
        let told = writer.save(&m.path("new.json"), content);
        if !content.starts_with("//") {
            assert_errno(told, "EBADMSG");
            assert!(!m.exists("new.json"), "{content}");
        }
    }
    writer.save(&m.path("new.json"), WHOLE).expect("JSON");
}

#[test]
fn what_json_writers_really_write_passes() {
    // The plain directory passes: a guard must not refuse what is whole.
    let m = mount!();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let documents = [
        "{}",
        "null",
        "  [1, 2.5e-7, -0]\n\n",
        "{\"loss\": NaN, \"max\": Infinity, \"min\": -Infinity}",
        "\u{feff}{\"bom\": true}",
        "// a comment\n{\"a\": 1, /* another */ \"b\": [2]}\n",
        "{\"line\": 1}\n{\"line\": 2}\n",
        "{\"text\": \"a \\\" and \\\\ and \\u00e9 and é\"}",
        "123456789012345678901234567890.000000000000000000000000001",
        &deep,
    ];
    let mut writer = Actor::new();
    for document in documents {
        let short: String = document.chars().take(60).collect();
        writer
            .save(&m.path("d.json"), document)
            .unwrap_or_else(|error| panic!("{short}: {error:?}"));
        assert_content(m.read("d.json"), document.as_bytes(), &short);
    }
    m.python(
        "import json\n\
         json.dump({'x': list(range(200000)), 'y': 'é' * 1000}, open('big.json', 'w'), indent=2)\n\
         assert len(json.load(open('big.json'))['x']) == 200000\n",
    )
    .ok();
}

#[test]
fn an_empty_file_replaces_no_document_but_may_be_created() {
    let m = with_document!();
    m.sh("touch new.json").ok();
    assert_content(m.read("new.json"), b"", "touch");
    m.save("new.json", WHOLE);
    m.sh(": > state.json");
    assert_kept(&m, "after an empty rewrite");
    m.sh("touch state.json").ok();
    assert_kept(&m, "after touch");
    let mut actor = Actor::new();
    assert_errno(actor.save(&m.path("state.json"), ""), "EBADMSG");

    let rule = "[[rule]]\nglob = \"*.json\"\nallow_empty = true\n";
    let m = mount!(Mount::options().rules(rule));
    m.save("state.json", WHOLE);
    m.save("state.json", "");
    assert_content(m.read("state.json"), b"", "with allow_empty");
}

#[test]
fn early_closes_of_duplicates_never_fail() {
    let m = with_document!();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("state.json")).unwrap();
    writer.dup("f", "copy").unwrap();
    writer.write("f", "{\"step\": ").unwrap();
    writer
        .close("f")
        .expect("half a document, but not the last reference");
    let mut child = writer.fork();
    writer.write("copy", "103").unwrap();
    writer.close("copy").expect("the child still holds it");
    // Plain: half a document shows.
    assert_kept(&m, "while the child holds it");
    child.write("copy", "}").unwrap();
    child.close("copy").unwrap();
    assert_content(
        m.read("state.json"),
        b"{\"step\": 103}",
        "whole at the last close",
    );
    m.sh("{ printf '{\"a\": '; /bin/echo 1; echo '}'; } > state.json")
        .ok();
    assert_content(
        m.read("state.json"),
        b"{\"a\": 1\n}\n",
        "a group of commands",
    );
}

#[test]
fn a_rename_link_or_exchange_onto_a_guarded_name_is_guarded() {
    let m = with_document!();
    let half = "{\"step\": ";
    m.save("half.tmp", half);
    let mut actor = Actor::new();
    let (half_path, state) = (m.path("half.tmp"), m.path("state.json"));
    assert_errno(actor.rename(&half_path, &state), "EBADMSG");
    assert_kept(&m, "after rename");
    assert_errno(actor.exchange(&half_path, &state), "EBADMSG");
    assert_kept(&m, "after exchange");
    assert_errno(actor.link(&half_path, &m.path("linked.json")), "EBADMSG");
    assert_errno(actor.rename(&half_path, &m.path("renamed.json")), "EBADMSG");
    assert!(!m.exists("linked.json") && !m.exists("renamed.json"));
    assert_content(
        m.read("half.tmp"),
        half.as_bytes(),
        "the source is untouched",
    );
    m.save("whole.tmp", "{\"step\": 5}");
    actor.rename(&m.path("whole.tmp"), &state).unwrap();
    assert_content(
        m.read("state.json"),
        b"{\"step\": 5}",
        "a whole one goes through",
    );
    // Renamed before it was closed.
    actor.open("f", "w", &m.path("open.tmp")).unwrap();
    actor.write("f", half).unwrap();
    assert_errno(actor.rename(&m.path("open.tmp"), &state), "EBADMSG");
    assert_content(
        m.read("state.json"),
        b"{\"step\": 5}",
        "after the rename of an open file",
    );
}

#[test]
fn a_truncated_archive_never_replaces_a_checkpoint() {
    let m = mount!();
    m.python(
        "import zipfile, os\n\
         for name in ['m.pt', 'm.npz', 'm.ckpt', 'm.zip']:\n\
         \x20   with zipfile.ZipFile(name, 'w') as z:\n\
         \x20       z.writestr('data/0', os.urandom(300000)); z.writestr('version', '3')\n\
         \x20   open('good.' + name + '.copy', 'wb').write(open(name, 'rb').read())\n",
    )
    .ok();
    let mut writer = Actor::new();
    for name in ["m.pt", "m.npz", "m.ckpt", "m.zip"] {
        let whole = m.read(name).expect("written by python");
        for cut in [whole.len() - 1, whole.len() / 2, 100] {
            assert_errno(writer.save(&m.path(name), &whole[..cut]), "EBADMSG");
            assert_content(m.read(name), &whole, name);
            assert_errno(writer.save(&m.path("new.pt"), &whole[..cut]), "EBADMSG");
            assert!(!m.exists("new.pt"));
        }
        writer
            .save(&m.path(name), &whole)
            .expect("the whole archive");
    }
    // Not a zip at all, as older versions of the same programs write it.
    writer
        .save(&m.path("old.pt"), stamped(1, 50_000))
        .expect("not a zip");
    assert_content(m.read("old.pt"), &stamped(1, 50_000), "a pickle");
    // Ctrl-C inside a save: ZipFile.__exit__ closes what it has.
    m.python(
        "import zipfile\n\
         f = open('m.pt', 'wb')\n\
         z = zipfile.ZipFile(f, 'w'); z.writestr('data/0', b'x' * 300000)\n\
         z._didModify = False\n\
         f.close()\n",
    );
    let whole = m.read("good.m.pt.copy").unwrap();
    assert_content(m.read("m.pt"), &whole, "after an interrupted save");
}

fn safetensors(floats: usize) -> Vec<u8> {
    let header = format!(
        "{{\"w\":{{\"dtype\":\"F32\",\"shape\":[{floats}],\"data_offsets\":[0,{}]}}}}",
        floats * 4
    );
    let mut content = (header.len() as u64).to_le_bytes().to_vec();
    content.extend_from_slice(header.as_bytes());
    content.resize(content.len() + floats * 4, 1);
    content
}

#[test]
fn a_truncated_safetensors_file_is_not_published() {
    let m = mount!();
    let whole = safetensors(50_000);
    m.save("w.safetensors", &whole);
    let mut writer = Actor::new();
    for damaged in [
        &whole[..whole.len() - 1],
        &whole[..1_000],
        &whole[..20],
        &whole[..5],
    ] {
        assert_errno(writer.save(&m.path("w.safetensors"), damaged), "EBADMSG");
        assert_content(m.read("w.safetensors"), &whole, "the old file");
    }
    writer
        .save(&m.path("w.safetensors"), safetensors(7))
        .unwrap();
    assert_content(
        m.read("w.safetensors"),
        &safetensors(7),
        "a whole one goes through",
    );
}

/// Made by a script in `python`, whole files of a kind that ends in its name.
#[track_caller]
fn assert_cut_off_files_are_refused(m: &Mount, names: &[&str]) {
    let mut writer = Actor::new();
    for name in names {
        let whole = m
            .read(name)
            .unwrap_or_else(|| panic!("{name} is published"));
        let kind = name.rsplit('.').next().unwrap();
        for cut in [whole.len() - 1, whole.len() / 2, 9] {
            let half = &whole[..cut];
            assert_errno(writer.save(&m.path(name), half), "EBADMSG");
            assert_content(m.read(name), &whole, name);
            let new = m.path(format!("new.{kind}"));
            assert_errno(writer.save(&new, half), "EBADMSG");
            assert!(!m.exists(format!("new.{kind}")), "{name}, {cut} bytes");
        }
        // Under its name, something of another kind: older formats, compressed ones.
        let other = m.path(format!("other.{kind}"));
        writer.save(&other, "# something else\n").expect(name);
        writer
            .save(&m.path(name), "# something else\n")
            .expect(name);
        m.save(name, &whole);
        assert_errno(writer.save(&m.path(name), ""), "EBADMSG");
    }
}

#[test]
fn half_an_array_pickle_or_compressed_file_is_not_published() {
    let m = mount!();
    m.python(
        "import gzip, pickle, struct, zipfile\n\
         header = str({'descr': '<f8', 'fortran_order': False, 'shape': (500,)}).encode()\n\
         with open('a.npy', 'wb') as f:\n\
         \x20   f.write(b'\\x93NUMPY\\1\\0' + struct.pack('<H', len(header)) + header + bytes(4000))\n\
         for protocol in range(2, 6):\n\
         \x20   pickle.dump({'step': list(range(9000))}, open(f'p{protocol}.pkl', 'wb'), protocol)\n\
         pickle.dump({'step': 1}, open('p.pickle', 'wb'))\n\
         for name in 'a.gz', 'a.rds', 'a.RData':\n\
         \x20   with gzip.open(name, 'wb') as f: f.write(bytes(range(256)) * 500)\n\
         with zipfile.ZipFile('m.keras', 'w') as z: z.writestr('config', 'x' * 9000)\n\
         open('a.parquet', 'wb').write(b'PAR1' + b'c' * 500 + b'f' * 77 + struct.pack('<I', 77) + b'PAR1')\n\
         open('a.zst', 'wb').write(bytes.fromhex('28b52ffd2009490000') + b'something')\n",
    )
    .ok();
    let names = [
        "a.npy",
        "p2.pkl",
        "p3.pkl",
        "p4.pkl",
        "p5.pkl",
        "p.pickle",
        "a.gz",
        "a.rds",
        "a.RData",
        "m.keras",
        "a.parquet",
        "a.zst",
    ];
    assert_cut_off_files_are_refused(&m, &names);
    let mut writer = Actor::new();
    for name in ["n.ipynb", "map.geojson"] {
        writer.save(&m.path(name), WHOLE).unwrap();
        assert_errno(writer.save(&m.path(name), "{\"half"), "EBADMSG");
        assert_content(m.read(name), WHOLE.as_bytes(), name);
    }
}

/// An HDF5 file's superblock says how long the whole is.
#[test]
fn half_an_hdf5_file_is_not_published_and_an_empty_one_replaces_none() {
    let m = mount!();
    let mut whole = b"\x89HDF\r\n\x1a\n\x02\x08\x08\0".to_vec();
    for address in [0, u64::MAX, 5000, 48] {
        whole.extend(u64::to_le_bytes(address));
    }
    whole.resize(5000, 7);
    m.save("w.h5", &whole);
    m.save("w.hdf5", &whole);
    assert_cut_off_files_are_refused(&m, &["w.h5", "w.hdf5"]);
    // Who loses the race for the lock that HDF5 takes has emptied the file by then, and closes it.
    let mut loser = Actor::new();
    loser.open("f", "w", &m.path("w.h5")).unwrap();
    assert_errno(loser.close("f"), "EBADMSG");
    assert_content(m.read("w.h5"), &whole, "the winner's");
}

#[test]
fn a_tree_with_templates_and_fixtures_is_whole_however_it_is_copied() {
    let m = mount!();
    m.bash(
        "mkdir tree && cd tree && mkdir templates && printf '{{ x }}' > templates/package.json\n\
         printf '{\"a\": <%= b %>}' > templates/b.json; printf '{key: 1}' > five.json\n\
         printf 'not json' > bad.json; printf '// c\\n' > c.json; : > empty.json\n\
         printf '{\"a\":1}' > good.json; printf '[1,2]]' > trailing.json\n\
         cd .. && cp -a tree copied && cp -a tree/. copied && tar cf t.tar tree && mkdir untarred\n\
         tar xf t.tar -C untarred && tar xf t.tar -C untarred\n\
         diff -r tree copied && diff -r tree untarred/tree",
    )
    .ok();
}

#[test]
fn content_that_never_was_of_the_kind_may_replace_content_that_was_not_either() {
    // The plain directory passes: `settings.json` that is really YAML must stay usable.
    let m = mount!(Mount::options().seed("odd.json", "key: value\n"));
    let mut writer = Actor::new();
    writer
        .save(&m.path("odd.json"), "key: other\n")
        .expect("it never was JSON");
    assert_content(
        m.read("odd.json"),
        b"key: other\n",
        "YAML under a JSON name",
    );
    writer
        .save(&m.path("odd.json"), "{\"now\": \"JSON\"}")
        .unwrap();
    if !common::plain() {
        assert_errno(writer.save(&m.path("odd.json"), "key: other\n"), "EBADMSG");
    }
}

#[test]
fn rules_switch_guards_off_and_add_them() {
    let rules = "[[rule]]\nglob = \"free/**\"\nguard = \"none\"\n\
                 [[rule]]\nglob = \"*.strict\"\nguard = \"json-strict\"\n\
                 [[rule]]\nglob = \"*.state\"\nguard = \"json\"\n";
    let m = mount!(Mount::options().rules(rules).seed("free/x", ""));
    let mut writer = Actor::new();
    writer
        .save(&m.path("free/a.json"), "{\"half")
        .expect("no guard here");
    assert_errno(writer.save(&m.path("a.state"), "{\"half"), "EBADMSG");
    writer.save(&m.path("a.state"), "{\"x\": NaN}").unwrap();
    assert_errno(writer.save(&m.path("a.strict"), "{\"x\": NaN}"), "EBADMSG");
    writer.save(&m.path("a.strict"), "{\"x\": 1}").unwrap();
    assert_errno(writer.save(&m.path("a.json"), "{\"half"), "EBADMSG");
}

#[test]
fn a_guard_says_in_log_and_commands_what_it_refused() {
    need_daemon!();
    let m = with_document!();
    let mut writer = Actor::new();
    assert_errno(writer.save(&m.path("state.json"), "{\"half\": "), "EBADMSG");
    let rejected = m.await_rejected("state.json", b"{\"half\": ");
    let list = commitfs(["rejected", "list", m.mountpoint().to_str().unwrap()]).ok();
    assert!(
        list.out.contains("state.json") && list.out.contains(&rejected.id),
        "{list:?}"
    );
    let pid = writer.pid().to_string();
    let log = m.log();
    let told = |line: &&str| line.contains("state.json") && line.contains(&pid);
    assert!(
        log.lines().any(|line| told(&line)),
        "no line names file and writer:\n{log}"
    );
}

#[test]
fn what_is_written_after_a_rename_is_guarded_by_the_new_name() {
    let m = with_document!();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("new.tmp")).unwrap();
    writer.write("f", "{\"step\": 101}\n").unwrap();
    writer
        .rename(&m.path("new.tmp"), &m.path("state.json"))
        .unwrap();
    writer.write("f", "{\"step\": ").unwrap();
    assert_errno(writer.close("f"), "EBADMSG");
    assert_content(
        m.read("state.json"),
        b"{\"step\": 101}\n",
        "half of what came after the rename",
    );

    // Its editor didn't rename it.
    m.save("plain", WHOLE);
    writer.open("f", "r+", &m.path("plain")).unwrap();
    m.sh("mv plain renamed.json").ok();
    writer.write("f", "half").unwrap();
    let told = writer.close("f");
    assert_content(m.read("renamed.json"), WHOLE.as_bytes(), "renamed by mv");
    assert_errno(told, "EBADMSG");

    writer.open("f", "r+", &m.path("renamed.json")).unwrap();
    m.sh("mv renamed.json plain").ok();
    writer.write("f", "half").unwrap();
    writer.close("f").expect("no guard there");
}

#[test]
fn the_next_version_ends_the_error_however_it_comes() {
    let m = with_document!();
    let mut actor = Actor::new();
    let error = |actor: &mut Actor| actor.getxattr(&m.path("state.json"), "user.commitfs.error");
    let refuse = |actor: &mut Actor| {
        assert_errno(actor.save(&m.path("state.json"), "{\"half"), "EBADMSG");
        error(actor).expect("an error");
    };
    refuse(&mut actor);
    m.save("state.json", WHOLE);
    assert_errno(error(&mut actor), "ENODATA");
    for (from, sync) in [("fresh", false), ("old", true)] {
        refuse(&mut actor);
        m.save(from, WHOLE);
        if sync {
            m.sh("sync -f .").ok();
        }
        actor.rename(&m.path(from), &m.path("state.json")).unwrap();
        assert_errno(error(&mut actor), "ENODATA");
    }
    for back in [false, true] {
        refuse(&mut actor);
        m.save("other", WHOLE);
        let (one, two) = (m.path("other"), m.path("state.json"));
        let (one, two) = if back { (two, one) } else { (one, two) };
        actor.exchange(&one, &two).unwrap();
        assert_errno(error(&mut actor), "ENODATA");
    }
}

#[test]
fn an_fsync_of_half_a_document_loses_nothing_of_what_came_after_it() {
    let m = with_document!();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("state.json")).unwrap();
    writer.write("f", "{\"step\": ").unwrap();
    writer.fsync("f").unwrap();
    writer.write("f", "101, \"loss\": ").unwrap();
    assert_errno(writer.close("f"), "EBADMSG");
    assert_kept(&m, "half a document");
    m.await_rejected("state.json", b"{\"step\": 101, \"loss\": ");
}

#[test]
fn a_truncation_that_leaves_half_a_document_is_refused_whoever_edits_it() {
    let m = with_document!();
    let (mut editor, mut actor) = (Actor::new(), Actor::new());
    assert_errno(actor.truncate(&m.path("state.json"), 7), "EBADMSG");
    editor.open("f", "r+", &m.path("state.json")).unwrap();
    assert_errno(actor.truncate(&m.path("state.json"), 7), "EBADMSG");
    assert_kept(&m, "half a document");
}

#[test]
fn a_refused_rename_names_who_has_asked_for_it() {
    let m = with_document!();
    let (mut opener, mut mover) = (Actor::new(), Actor::new());
    m.save("half.tmp", "{\"step\": 101, \"lo");
    let (from, to) = (m.path("half.tmp"), m.path("state.json"));
    let assert_told = |what: &str, mover: &Actor| {
        let told = m.status()["errors"].clone();
        let last = told
            .as_array()
            .and_then(|all| all.last())
            .expect("an error");
        assert_eq!(last["pid"], mover.pid(), "{what}: {last}");
        let name = last["command"].as_str().unwrap_or_default();
        assert!(name.starts_with("commitfs-test"), "{what}: {last}");
        let said = m.command(&["status", "--keep-errors"]).out;
        let who = format!("(process {}, {name})", mover.pid());
        assert!(said.contains(&who), "{what}: {said}");
        assert!(m.log().contains(&format!("{} ({name})", mover.pid())));
    };
    assert_errno(mover.rename(&from, &to), "EBADMSG");
    assert_told("rename", &mover);
    let mut mover = Actor::new();
    assert_errno(mover.link(&from, &m.path("other.json")), "EBADMSG");
    assert_told("link", &mover);
    let mut mover = Actor::new();
    m.save("whole.json", WHOLE);
    assert_errno(mover.exchange(&from, &m.path("whole.json")), "EBADMSG");
    assert_told("exchange", &mover);
    // Still open, by another process than the one that renames it.
    let mut mover = opener.fork();
    opener.open("f", "w", &m.path("open.tmp")).unwrap();
    opener.write("f", "{\"step\": 102, \"lo").unwrap();
    let mut younger = opener.fork();
    let renamed = younger.rename(&m.path("open.tmp"), &to);
    assert_errno(renamed, "EBADMSG");
    assert_told("rename of an open file", &younger);
    mover.exit(0);
    assert_kept(&m, "all of them");
}
