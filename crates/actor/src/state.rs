//! The folder in which actors rest between processes: `STATE/actors/NAME/head` and a lock beside it, and the chunks that all heads share in
//! `STATE/store`.
//!
//! Heads and chunks are immutable and published by rename, so they can be mapped while newer ones take their place. Folders are 0700, files
//! 0600. Whoever works with an actor holds its lease.
//! An import is a file of its own, `imported.safetensors`, until the actor is first saved here: it still carries its parent's identity.
//! `actor.safetensors` is where the first version kept an actor; it is read, and gone with the next save.

use crate::history::{self, Moment};
use crate::limits::NAME_BYTES_MAX;
use crate::log::{Journals, Log, pack, records_of};
use crate::{Error, FreezeReport, Host, IdentityRule, Message, ThawOptions, ThawReport};
use driftwood_snapshot::{self as snapshot, Existing, Manifest, Snapshot};
use driftwood_store::{
    Base, Chunks, Durability, Error as StoreError, Flawed, Head, JournalFiles, Lease, Leases, LockFiles, Swept, sweep_journals,
};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

pub(crate) const HEAD_FILE: &str = "head";
const ACTOR_FILE: &str = "actor.safetensors";
const IMPORTED_FILE: &str = "imported.safetensors";

/// Checks a name: 1 to 64 of `a-z 0-9 - _ .`, not beginning with a point or a dash, so that it is a file name and no option anywhere.
///
/// # Errors
/// [`Error::BadName`], which says what is wrong.
pub fn valid_name(name: &str) -> Result<(), Error> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > NAME_BYTES_MAX {
        "it has more than 64 bytes"
    } else if !name.bytes().all(allowed) {
        "only a-z, 0-9, `-`, `_` and `.` are allowed"
    } else if name.starts_with(['.', '-']) {
        "it begins with a point or a dash"
    } else {
        return Ok(());
    };
    Err(Error::BadName { name: name.escape_debug().take(2 * NAME_BYTES_MAX).collect(), why })
}

/// All actors at rest on this machine.
#[derive(Clone, Debug)]
pub struct StateFolder {
    actors: PathBuf,
    chunks: Arc<Chunks>,
    leases: Arc<dyn Leases>,
    journals: Journals,
}

/// An actor in a listing. Its file is not opened for it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// When it was last saved.
    pub modified: Option<SystemTime>,
    /// Who works with it now.
    pub held_by: Option<String>,
}

/// What rests under a name.
#[derive(Clone, Debug)]
pub struct InState {
    /// What it says of itself.
    pub manifest: Manifest,
    /// The file that says so.
    pub path: PathBuf,
    /// Bytes that it names or holds: of chunks that others name, too, all of them.
    pub bytes: u64,
    /// How many of them are KV.
    pub kv_bytes: u64,
    /// Whether a process died in the middle of a message, or before it had kept what came of one.
    pub cut_off: bool,
}

impl StateFolder {
    /// Opens a state folder, making it if there is none.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(root: &Path) -> Result<StateFolder, Error> {
        let actors = root.join("actors");
        make_folder(&actors)?;
        let journals = Journals::new(root.join("journals"), Durability::Disk);
        let leases = Arc::new(LockFiles::new(&actors));
        Ok(StateFolder { actors, chunks: Arc::new(Chunks::open(&root.join("store"))?), leases, journals })
    }

    /// The same folder, where what is said is shown as soon as it survives so much. From the start it is a power cut.
    pub fn with_durability(mut self, durability: Durability) -> StateFolder {
        self.journals = Journals::new(self.journals.folder().to_owned(), durability);
        self
    }

    /// The chunks of all actors.
    pub fn chunks(&self) -> &Arc<Chunks> {
        &self.chunks
    }

    /// The folder with a folder for each actor.
    pub(crate) fn actors(&self) -> &Path {
        &self.actors
    }

    /// The heads of all actors: what a collection of garbage goes by.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn heads(&self) -> Result<Vec<PathBuf>, Error> {
        let heads = self.list()?.into_iter().map(|listed| self.actors.join(listed.name).join(HEAD_FILE));
        Ok(heads.filter(|head| head.is_file()).collect())
    }

    /// Claims a new name.
    ///
    /// # Errors
    /// [`Error::NameTaken`] if an actor has it, [`Error::Held`] if another process is about to.
    pub fn create(&self, name: &str) -> Result<ActorFolder, Error> {
        let folder = self.lock(name)?;
        if folder.at_rest().is_some() { Err(Error::NameTaken { name: name.to_owned() }) } else { Ok(folder) }
    }

    /// Takes hold of an actor. It is held until the answer is dropped.
    ///
    /// # Errors
    /// [`Error::NoSuchActor`], or [`Error::Held`] with who holds it.
    pub fn hold(&self, name: &str) -> Result<ActorFolder, Error> {
        self.check_exists(name)?;
        let folder = self.lock(name)?;
        if folder.at_rest().is_some() { Ok(folder) } else { Err(Error::NoSuchActor { name: name.to_owned() }) }
    }

    /// Brings a file from elsewhere in under a new name: copied, every byte verified, and private.
    ///
    /// # Errors
    /// As [`StateFolder::create`], or if the file is no intact snapshot.
    pub fn import(&self, file: &Path, name: &str) -> Result<ActorFolder, Error> {
        let folder = self.create(name)?;
        match snapshot::import(file, &folder.path.join(IMPORTED_FILE), Existing::Refuse) {
            Ok(_) => Ok(folder),
            Err(e) => {
                folder.remove()?;
                Err(e.into())
            }
        }
    }

    /// Removes chunks that no actor names any more, and journals that no actor goes on from. Waits for saves that are under way, and they for it.
    ///
    /// # Errors
    /// If a head is damaged: nothing is removed then.
    pub fn sweep(&self) -> Result<Swept, Error> {
        // First what reads every head: a journal stays as long as the head that it continues may come back from a backup.
        let swept = self.chunks.sweep(|| self.heads())?;
        sweep_journals(self.journals.folder(), |name| Head::hash_of(&self.actors.join(name).join(HEAD_FILE)).ok())?;
        Ok(swept)
    }

    /// How many journals there are, of how many bytes, and which are damaged.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn journal_files(&self) -> Result<JournalFiles, Error> {
        Ok(driftwood_store::journal_files(self.journals.folder())?)
    }

    /// Reads everything that rests here and says what is missing or altered: in all actors, each with what it names, and in journals.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub fn check(&self) -> Result<Vec<Flawed>, Error> {
        let mut flawed = self.chunks.check(&self.heads()?);
        for listed in self.list()? {
            if let Some((Form::File | Form::Imported, head)) = at_rest(&self.actors.join(&listed.name))
                && let Err(error) = Snapshot::open(&head).and_then(|file| file.verify_all(1))
            {
                flawed.push(Flawed { head, error: error.into() });
            }
        }
        let damaged = self.journal_files()?.damaged;
        flawed.extend(damaged.into_iter().map(|path| Flawed { error: StoreError::BadJournal { path: path.clone() }, head: path }));
        Ok(flawed)
    }

    /// All actors, by name. Their files are not opened.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let entries = std::fs::read_dir(&self.actors).map_err(|e| system("read the folder", &self.actors, e))?;
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| system("read the folder", &self.actors, e))?;
            let name = entry.file_name().into_string().unwrap_or_default();
            if valid_name(&name).is_err() {
                continue;
            }
            let Some((_, file)) = at_rest(&entry.path()) else { continue };
            let Ok(metadata) = file.metadata() else { continue }; // removed meanwhile
            let held_by = self.leases.holder(&name);
            listed.push(Listed { name, modified: metadata.modified().ok(), held_by });
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    /// What an actor says of itself, read without taking hold of it: its file is never changed in place.
    ///
    /// # Errors
    /// If there is no such actor, or its file is damaged.
    pub fn inspect(&self, name: &str) -> Result<InState, Error> {
        let (form, path) = self.check_exists(name)?;
        if form == Form::Head {
            let head = Head::read(&path)?;
            let base = Base { name: name.to_owned(), id: head.identity.id, head: Head::hash_of(&path)? };
            let cut_off = !self.journals.left(&base)?.recordings.is_empty();
            return Ok(InState { manifest: head.manifest(), path, bytes: head.named_bytes(), kv_bytes: head.kv_bytes(), cut_off });
        }
        let file = snapshot::inspect(&path)?;
        let kv = |t: &&snapshot::TensorInfo| t.name.starts_with("kv.") || t.name.ends_with(".tail");
        let kv_bytes = file.tensors.iter().filter(kv).map(|t| t.bytes).sum();
        Ok(InState { manifest: file.manifest, path, bytes: file.file_bytes, kv_bytes, cut_off: false })
    }

    /// What an actor was after each message, oldest first, read without taking hold of it. Empty if it was never kept as a head: the
    /// portable file carries no history.
    ///
    /// # Errors
    /// If there is no such actor, or a head or chunk of its history is damaged or missing.
    pub fn history(&self, name: &str) -> Result<Vec<Moment>, Error> {
        self.head(name)?.map_or(Ok(Vec::new()), |head| history::moments(&head, &self.chunks))
    }

    /// An actor's head; `None` if it still rests in a file.
    ///
    /// # Errors
    /// If there is no such actor, or its head is damaged.
    pub fn head(&self, name: &str) -> Result<Option<Head>, Error> {
        let (form, path) = self.check_exists(name)?;
        if form == Form::Head { Ok(Some(Head::read(&path)?)) } else { Ok(None) }
    }

    /// Removes an actor.
    ///
    /// # Errors
    /// As [`StateFolder::hold`], or if a file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.hold(name)?.remove()
    }

    /// Whether an actor rests under a name.
    pub(crate) fn at_rest(&self, name: &str) -> bool {
        at_rest(&self.actors.join(name)).is_some()
    }

    fn check_exists(&self, name: &str) -> Result<(Form, PathBuf), Error> {
        valid_name(name)?;
        at_rest(&self.actors.join(name)).ok_or_else(|| Error::NoSuchActor { name: name.to_owned() })
    }

    /// Locks a name, whether or not there is an actor, and clears away what a killed process left.
    fn lock(&self, name: &str) -> Result<ActorFolder, Error> {
        valid_name(name)?;
        let lease = self.leases.take(name).map_err(of_system)?;
        let (name, path) = (name.to_owned(), self.actors.join(name));
        let (chunks, journals, accepted) = (self.chunks.clone(), self.journals.clone(), Mutex::default());
        let folder = ActorFolder { name, path, chunks, journals, accepted, lease };
        snapshot::remove_stale_temps(&folder.path)?;
        Ok(folder)
    }
}

/// An actor's folder, held by this process.
#[derive(Debug)]
pub struct ActorFolder {
    name: String,
    path: PathBuf,
    chunks: Arc<Chunks>,
    journals: Journals,
    /// What [`ActorFolder::accept`] has recorded.
    accepted: Mutex<Option<Log>>,
    lease: Box<dyn Lease>,
}

impl ActorFolder {
    /// The actor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The head that [`ActorFolder::save`] publishes.
    pub fn head(&self) -> PathBuf {
        self.path.join(HEAD_FILE)
    }

    /// Thaws the actor into a host under its own name. It is the same actor, unless it was imported and never saved here: then it is a new
    /// one, whatever `options.identity` says. From here on its messages are recorded; with other settings or another model it is saved first.
    ///
    /// # Errors
    /// As [`Host::thaw`], or [`Error::Parked`] if it is to be another one in the middle of a message.
    pub fn thaw_into(&self, host: &mut Host, mut options: ThawOptions) -> Result<ThawReport, Error> {
        let (form, path) = self.at_rest().ok_or_else(|| Error::NoSuchActor { name: self.name.clone() })?;
        options.identity = if form == Form::Imported { IdentityRule::Mint } else { IdentityRule::Keep };
        match form {
            Form::Head => {
                let changes = options.model.is_some() || !options.settings.is_empty();
                if changes && self.is_cut_off()? {
                    return Err(Error::Parked { name: self.name.clone() }); // it would not be the message that was recorded
                }
                let report = host.thaw_head(&path, &self.chunks, &self.name, options)?;
                let logged = if changes { self.save(host).map(drop) } else { self.log_in(host) };
                logged.inspect_err(|_| drop(host.remove(&self.name)))?;
                Ok(report)
            }
            Form::File | Form::Imported => host.thaw(&path, &self.name, options),
        }
    }

    /// Records a message durably before anything is done about it, even before the actor is thawed: whoever is killed from now on leaves it to
    /// be resumed. The actor must have been saved here, and must not be parked.
    ///
    /// # Errors
    /// If the journal cannot be written, or there is a message to be resumed first.
    pub fn accept(&self, message: &Message) -> Result<(), Error> {
        let base = self.base()?;
        let left = self.journals.left(&base)?;
        if !left.recordings.is_empty() {
            return Err(Error::Parked { name: self.name.clone() });
        }
        let mut log = Log::after(self.journals.clone(), base, &left)?;
        log.accept(&message.bytes, &message.settings)?;
        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(log);
        Ok(())
    }

    /// Whether the actor rests in the form of this version, in which its messages can be recorded.
    pub fn is_kept(&self) -> bool {
        matches!(self.at_rest(), Some((Form::Head, _)))
    }

    /// Whether a process died in the middle of a message of this actor, or before it had kept what came of one.
    ///
    /// # Errors
    /// If journals cannot be read.
    pub fn is_cut_off(&self) -> Result<bool, Error> {
        match self.at_rest() {
            Some((Form::Head, _)) => Ok(!self.journals.left(&self.base()?)?.recordings.is_empty()),
            _ => Ok(false),
        }
    }

    /// Has the host record the actor's messages, and parks it where a process has left some.
    fn log_in(&self, host: &mut Host) -> Result<(), Error> {
        if let Some(log) = self.accepted.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return host.log_to(&self.name, log);
        }
        let base = self.base()?;
        let left = self.journals.left(&base)?;
        host.log_to(&self.name, Log::after(self.journals.clone(), base, &left)?)?;
        host.take_left(&self.name, left.recordings)
    }

    /// The head that stands now, as journals name it.
    fn base(&self) -> Result<Base, Error> {
        let head = Head::read(&self.head())?;
        Ok(Base { name: self.name.clone(), id: head.identity.id, head: Head::hash_of(&self.head())? })
    }

    /// Keeps the actor of this name in the host: what is new becomes chunks, and a head takes the place of the former.
    ///
    /// # Errors
    /// As [`Host::keep`]; the former state stays then.
    pub fn save(&self, host: &mut Host) -> Result<FreezeReport, Error> {
        self.lease.check()?;
        let report = host.keep(&self.name, &self.chunks, &self.head())?;
        host.rebase(&self.name, self.base()?, &self.journals)?;
        for former in [ACTOR_FILE, IMPORTED_FILE].map(|file| self.path.join(file)) {
            match std::fs::remove_file(&former) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(system("remove", &former, e)),
                _ => {}
            }
        }
        Ok(report)
    }

    /// Takes the actor back to when it had handled `turn` messages: the head of then takes the place of the present one, durably. What
    /// comes after is forgotten, and is garbage unless a fork has it too. The actor stays who it is.
    ///
    /// # Errors
    /// [`Error::NoSuchTurn`], or if its history is damaged; the actor stays as it is then.
    pub fn rewind(&self, turn: u64) -> Result<Rewound, Error> {
        let (form, path) = self.at_rest().ok_or_else(|| Error::NoSuchActor { name: self.name.clone() })?;
        if form != Form::Head {
            let known = snapshot::inspect(&path)?.manifest.guest.map_or(0, |guest| guest.state.messages_handled);
            return Err(Error::NoSuchTurn { turn, known: known.to_string() });
        }
        let _commit = self.chunks.commit()?; // keeps what the former head names
        let present = Head::read(&path)?;
        let former = history::head_at(&present, &self.chunks, turn)?;
        let tokens = |head: &Head| head.sessions.iter().map(|session| u64::from(session.tokens)).sum();
        let report = Rewound { turn, dropped_turns: present.turn() - former.turn(), tokens: (tokens(&present), tokens(&former)) };
        if report.dropped_turns > 0 {
            self.lease.check()?;
            Head { identity: present.identity, given_up: present.given_up + 1, ..former }.publish(&path)?;
        }
        Ok(report)
    }

    /// Writes the actor as one portable file, every byte verified, also one whose process died in the middle of a message. No model is needed for it, and no code of the guest runs.
    ///
    /// # Errors
    /// If what rests here is damaged, or the file exists or cannot be written.
    pub fn export(&self, path: &Path, existing: Existing) -> Result<Snapshot, Error> {
        let (form, at_rest) = self.at_rest().ok_or_else(|| Error::NoSuchActor { name: self.name.clone() })?;
        if form != Form::Head {
            return Ok(snapshot::import(&at_rest, path, existing)?);
        }
        let journal = pack(&records_of(&self.journals.left(&self.base()?)?.recordings));
        Head::read(&at_rest)?.export(&self.chunks, path, existing, &journal)?;
        Ok(Snapshot::open(path)?)
    }

    /// Removes the actor. Those who have its file mapped keep their bytes.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn remove(self) -> Result<(), Error> {
        std::fs::remove_dir_all(&self.path).map_err(|e| system("remove the folder", &self.path, e))
    }

    fn at_rest(&self) -> Option<(Form, PathBuf)> {
        at_rest(&self.path)
    }
}

/// What came of rewinding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewound {
    /// Messages that are left.
    pub turn: u64,
    /// Messages that were dropped.
    pub dropped_turns: u64,
    /// Tokens of all sessions, before and after.
    pub tokens: (u64, u64),
}

/// In which form an actor rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Head,
    File,
    Imported,
}

/// Where the actor of a folder rests: in an import, else in a file of the first version, else in its head. The others are there only
/// until the head holds all that they do.
fn at_rest(folder: &Path) -> Option<(Form, PathBuf)> {
    let forms = [(Form::Imported, IMPORTED_FILE), (Form::File, ACTOR_FILE), (Form::Head, HEAD_FILE)];
    forms.map(|(form, file)| (form, folder.join(file))).into_iter().find(|(_, path)| path.is_file())
}

/// Makes a folder durably; if that fails, it is the system's fault.
fn make_folder(path: &Path) -> Result<(), Error> {
    snapshot::make_folder_durably(path).map_err(|e| of_system(e.into()))
}

/// What the system answered, or who holds a name, as this crate says it.
fn of_system(error: StoreError) -> Error {
    match error {
        StoreError::Held { name, by } => Error::Held { name, by },
        StoreError::System { operation, path, source } | StoreError::Publish(snapshot::Error::System { operation, path, source }) => {
            Error::System { operation, path, source }
        }
        other => other.into(),
    }
}

pub(crate) fn system(operation: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::System { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names_and_nothing_else() {
        for good in ["a", "my-agent_2.old", &"x".repeat(64)] {
            valid_name(good).unwrap();
        }
        for bad in ["", ".", "..", "../x", "a/b", "A", "ä", "-rf", ".hidden", "a b", "a\0", &"x".repeat(65)] {
            assert!(matches!(valid_name(bad), Err(Error::BadName { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_held_actor_is_refused_and_its_holder_named() {
        let root = tempfile::tempdir().unwrap();
        let state = StateFolder::open(root.path()).unwrap();
        let held = state.create("a").unwrap();
        let Err(Error::Held { by, .. }) = state.create("a") else { panic!("it is held") };
        assert!(by.contains(&format!("process {}", std::process::id())), "{by}");
        assert!(matches!(state.hold("a"), Err(Error::NoSuchActor { .. })), "nothing rests there yet");
        std::fs::write(held.head(), b"x").unwrap();
        assert!(matches!(state.hold("a"), Err(Error::Held { .. })));
        let listed = state.list().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].held_by.as_deref(), Some(by.as_str()));
        drop(held);
        assert!(state.list().unwrap()[0].held_by.is_none());
        assert!(matches!(state.create("a"), Err(Error::NameTaken { .. })));
        state.remove("a").unwrap();
        assert!(state.list().unwrap().is_empty());
        use std::os::unix::fs::PermissionsExt;
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        let fresh = state.create("b").unwrap();
        assert_eq!((mode(&root.path().join("actors")), mode(&fresh.path), mode(&fresh.path.join("lock"))), (0o700, 0o700, 0o600));
    }
}
