use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::process::ElfFacts;

/// This very program, or a copy of it.
fn subject(path: &Path) -> Subject {
    let file = File::open(path).unwrap();
    let facts = ElfFacts::read(&file).unwrap();
    Subject {
        file: file.into(),
        path: path.to_str().unwrap().into(),
        pid: std::process::id(),
        likeness: Arc::new(Likeness {
            build_id: facts.build_id,
            htlhash: [7; 16],
            segments: facts.segments,
            is_go: false,
        }),
    }
}

fn this_program() -> Subject {
    subject("/proc/self/exe".as_ref())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn kept_tables_are_those_that_were_made() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(&folder.path().join("new/folder")).unwrap();
    let subject = this_program();
    assert_eq!(cache.load(&subject), None);
    let made = subject.make();
    assert!(!made.tables.is_empty() && made.tables.iter().any(|table| table.row_count() > 1000));
    cache.save(&subject, &made);
    assert_eq!(cache.load(&subject), Some(made));
    let [file] = &files(&cache.folder)[..] else {
        panic!("one file")
    };
    assert_eq!(fs::metadata(file).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&cache.folder).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn damaged_file_is_passed_over_and_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path()).unwrap();
    let subject = this_program();
    let made = subject.make();
    cache.save(&subject, &made);
    let [path] = &files(folder.path())[..] else {
        panic!("one file")
    };
    let good = fs::read(path).unwrap();
    for damage in 0..60 {
        let mut bad = good.clone();
        match damage % 3 {
            0 => bad[good.len() / 60 * damage] ^= 1 << (damage % 8),
            1 => bad.truncate(good.len() / 60 * damage),
            _ => bad.extend(&good[..damage]),
        }
        fs::write(path, &bad).unwrap();
        assert_eq!(cache.load(&subject), None, "{damage}");
    }
    cache.save(&subject, &made);
    assert_eq!(cache.load(&subject), Some(made));
}

#[test]
fn lies_with_a_right_digest_lead_nowhere_out_of_the_table() {
    let made = this_program().make();
    let proof = made.proof.unwrap();
    let table = made
        .tables
        .into_iter()
        .max_by_key(Table::row_count)
        .unwrap();
    let decode_with = |change: fn(&mut Table)| {
        let mut table = table.clone();
        change(&mut table);
        decode(&encode(&[table], &proof)).map(|(tables, _)| tables)
    };
    assert_eq!(decode_with(|_| {}), Some(vec![table.clone()]));
    let changes: [fn(&mut Table); 6] = [
        |table| table.words[3] = u32::MAX,
        |table| table.words[3] = 0,
        |table| table.words.truncate(table.page_count as usize),
        |table| table.page_count = u32::MAX,
        |table| table.wide_rows.push(u32::MAX),
        |table| table.wide_rows.push(0),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        assert_eq!(decode_with(change), None, "{at}");
    }
    // Counts that no file bears out take no memory.
    let mut bytes = MAGIC.to_vec();
    (0..9).for_each(|_| put(&mut bytes, u64::MAX / 16));
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    assert_eq!(decode(&bytes), None);
}

#[test]
fn file_that_only_looks_alike_gets_no_tables_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path()).unwrap();
    let path = folder.path().join("program");
    fs::copy("/proc/self/exe", &path).unwrap();
    let original = subject(&path);
    let made = original.make();
    cache.save(&original, &made);
    // The same build id, length and segments, but other unwind information.
    let mut bytes = fs::read(&path).unwrap();
    let proof = made.proof.unwrap();
    let part = proof
        .file
        .parts
        .iter()
        .max_by_key(|part| part.bytes)
        .unwrap();
    bytes[(part.offset + part.bytes / 2) as usize] ^= 1;
    fs::write(&path, bytes).unwrap();
    let other = subject(&path);
    assert_eq!(
        cache.path_of(&other.likeness),
        cache.path_of(&original.likeness)
    );
    assert_eq!(cache.load(&other), None);
}

#[test]
fn least_recently_used_files_go_when_there_are_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let mut cache = Cache::open(folder.path()).unwrap();
    let mut subject = this_program();
    let made = subject.make();
    let mut paths = Vec::new();
    for name in 0..4 {
        Arc::make_mut(&mut subject.likeness).htlhash = [name; 16];
        cache.save(&subject, &made);
        let path = cache.path_of(&subject.likeness);
        let used = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(name.into());
        File::open(&path).unwrap().set_modified(used).unwrap();
        paths.push(path);
    }
    // The first is used, so it is the last to go.
    Arc::make_mut(&mut subject.likeness).htlhash = [0; 16];
    assert!(cache.load(&subject).is_some());
    cache.max_total_bytes = 2 * fs::metadata(&paths[0]).unwrap().len();
    fs::write(folder.path().join("other"), "not ours").unwrap();
    cache.tidy().unwrap();
    let there: Vec<_> = paths.iter().map(|path| path.exists()).collect();
    assert_eq!(there, [true, false, false, true]);
    assert!(folder.path().join("other").exists());
}

#[test]
fn folder_where_others_may_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let refused = Cache::open(folder.path()).unwrap_err().to_string();
    assert!(refused.contains("others may write"), "{refused}");
    fs::write(folder.path().join("file"), "").unwrap();
    assert!(Cache::open(&folder.path().join("file")).is_err());
}
