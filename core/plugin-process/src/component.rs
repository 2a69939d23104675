//! Runs a WebAssembly component: an instance per call in flight, kept while it is healthy.

use crate::functions::Functions;
use crate::ticker::{TICK_MS, Ticker};
use crate::values::{from_json, snake, to_json};
use crate::{Call, Failure, Plugin, wasi};
use parking_lot::Mutex;
use plugin::protocol::Hello;
use plugin::{LogLevel, PluginErrorKind as Kind, interface_is_served};
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{self, ComponentExportIndex, Instance, InstancePre, Linker, Val};
use wasmtime::{
    Cache, CacheConfig, Config, Engine, Error, ResourceLimiter, Result as WasmResult, Store, Trap,
};

/// Host interfaces, without package version; `types` has no functions.
const HOST_INTERFACES: &[&str] = &[
    "xylem:plugin/types",
    "xylem:plugin/host",
    "xylem:plugin/files",
    "xylem:plugin/messages",
    "xylem:plugin/timers",
];
const PACKAGE: &str = "xylem:plugin/";
/// Stack of a component's code; a worker's thread has more.
const STACK_BYTES: usize = 512 << 10;
/// What a component may make the host allocate for the values of one call.
const HOSTCALL_BYTES_MAX: usize = 48 << 20;
const TABLE_ELEMENTS_MAX: usize = 1 << 20;
/// What is kept of the text printed last, for the report of a panic.
const PRINTED_BYTES_MAX: usize = 1024;

/// A loaded component.
pub(crate) struct Component {
    engine: Engine,
    ready: InstancePre<State>,
    exports: HashMap<String, ComponentExportIndex>,
    interfaces: Vec<String>,
    idle: Mutex<Vec<Live>>,
    ticker: Arc<Ticker>,
    functions: Arc<Functions>,
    memory_bytes: usize,
}

struct Live {
    store: Store<State>,
    instance: Instance,
}

/// What belongs to one instance.
pub(crate) struct State {
    call: u64,
    pub(crate) started: Instant,
    functions: Arc<Functions>,
    memory_bytes_max: usize,
    memory_bytes: usize,
    printed: String,
}

impl State {
    /// Takes what the component printed: whole lines go to the log.
    pub(crate) fn printed(&mut self, bytes: &[u8], level: LogLevel) {
        self.printed.push_str(&String::from_utf8_lossy(bytes));
        let whole = self.printed.rfind('\n').map_or(0, |end| end + 1);
        for line in self.printed.get(..whole).unwrap_or_default().lines() {
            self.functions.write_line(self.call, level, line);
        }
        if self.printed.len() > PRINTED_BYTES_MAX {
            let keep = self.printed.len() - PRINTED_BYTES_MAX;
            let keep = self.printed.ceil_char_boundary(keep);
            self.printed.drain(..keep);
        }
    }
}

impl ResourceLimiter for State {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> WasmResult<bool> {
        let total = self
            .memory_bytes
            .saturating_add(desired.saturating_sub(current));
        if total > self.memory_bytes_max {
            let limit = self.memory_bytes_max >> 20;
            return Err(Error::msg(format!("over its memory limit of {limit} MiB")));
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> WasmResult<bool> {
        if desired > TABLE_ELEMENTS_MAX {
            return Err(Error::msg(format!("a table of {desired} elements")));
        }
        Ok(true)
    }
}

impl Component {
    /// Compiles the component (or finds it compiled in its cache) and checks what it imports.
    pub(crate) fn load(
        hello: &Hello,
        artifact: OwnedFd,
        functions: Arc<Functions>,
    ) -> Result<Self, Failure> {
        let incompatible =
            |what: &str, error: Error| (Kind::Incompatible, format!("{what}: {}", reason(&error)));
        let internal = |error: Error| (Kind::Internal, format!("{error:#}"));
        let engine = engine(hello).map_err(internal)?;
        let bytes = read(&artifact).map_err(|error| (Kind::Io, error.to_string()))?;
        let component = component::Component::from_binary(&engine, &bytes)
            .map_err(|error| incompatible("not a component", error))?;
        let mut linker = Linker::new(&engine);
        link(&mut linker, &engine, &component).map_err(|message| (Kind::Incompatible, message))?;
        let ready = linker
            .instantiate_pre(&component)
            .map_err(|error| incompatible("its imports do not fit", error))?;
        let (exports, interfaces) = exports(&engine, &component)?;
        let ticker =
            Ticker::start(engine.clone()).map_err(|error| (Kind::Io, error.to_string()))?;
        Ok(Self {
            engine,
            ready,
            exports,
            interfaces,
            idle: Mutex::default(),
            ticker,
            functions,
            memory_bytes: usize::try_from(hello.memory_bytes).unwrap_or(usize::MAX),
        })
    }

    fn new_instance(&self) -> WasmResult<Live> {
        let state = State {
            call: 0,
            started: Instant::now(),
            functions: self.functions.clone(),
            memory_bytes_max: self.memory_bytes,
            memory_bytes: 0,
            printed: String::new(),
        };
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| state);
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        store.set_epoch_deadline(100);
        let instance = self.ready.instantiate(&mut store)?;
        Ok(Live { store, instance })
    }

    /// Calls into one instance; `Err` means that the instance is not usable any more.
    fn enter(&self, live: &mut Live, call: &Call<'_>) -> Result<Vec<u8>, Failure> {
        let incompatible = |message: String| (Kind::Incompatible, message);
        let missing = || (Kind::Unsupported, format!("it has no {}", call.method));
        let index = self.exports.get(call.method).ok_or_else(missing)?;
        let Live { store, instance } = live;
        let function = instance.get_func(&mut *store, index).ok_or_else(missing)?;
        let object: Map<String, Value> = serde_json::from_slice(call.parameters)
            .map_err(|error| incompatible(format!("parameters: {error}")))?;
        let ty = function.ty(&*store);
        let mut parameters = Vec::with_capacity(object.len());
        for (name, ty) in ty.params() {
            let value = object.get(&snake(name)).unwrap_or(&Value::Null);
            let value = from_json(value, &ty)
                .map_err(|error| incompatible(format!("its parameter {name}: {error}")))?;
            parameters.push(value);
        }
        let mut results = vec![Val::Bool(false); ty.results().len()];
        store.data_mut().call = call.id;
        store.data_mut().printed.clear();
        store.set_epoch_deadline(call.timeout_ms / TICK_MS + 1);
        if let Err(error) = function.call(&mut *store, &parameters, &mut results) {
            return Err(broken(&error, &store.data().printed, call.timeout_ms));
        }
        let result = match results.first() {
            Some(result @ Val::Result(_)) => to_json(result),
            Some(value) => to_json(value).map(|value| json!({ "Ok": value })),
            None => Ok(json!({ "Ok": null })),
        };
        result
            .map(|result| result.to_string().into_bytes())
            .map_err(|error| incompatible(format!("its result: {error}")))
    }
}

impl Plugin for Component {
    fn interfaces(&self) -> Vec<String> {
        self.interfaces.clone()
    }

    fn call(&self, call: &Call<'_>) -> Result<Vec<u8>, Failure> {
        let _running = self.ticker.run();
        let idle = self.idle.lock().pop();
        let mut live = match idle {
            Some(live) => live,
            None => self
                .new_instance()
                .map_err(|error| broken(&error, "", call.timeout_ms))?,
        };
        let result = self.enter(&mut live, call);
        if result.is_ok() {
            self.idle.lock().push(live);
        }
        result
    }
}

/// Says how a call ended that did not return.
fn broken(error: &Error, printed: &str, timeout_ms: u64) -> Failure {
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => (Kind::Timeout, format!("no answer within {timeout_ms} ms")),
        _ => {
            let printed = printed.trim();
            let why = reason(error);
            let text = if printed.is_empty() {
                why
            } else {
                format!("{why}: {printed}")
            };
            (Kind::Crashed, text)
        }
    }
}

/// The innermost error; the layers above it are addresses in the component.
fn reason(error: &Error) -> String {
    error.root_cause().to_string()
}

fn engine(hello: &Hello) -> WasmResult<Engine> {
    let mut config = Config::new();
    config.epoch_interruption(true).max_wasm_stack(STACK_BYTES);
    if let Some(directory) = &hello.cache_dir {
        let mut cache = CacheConfig::new();
        cache.with_directory(directory);
        config.cache(Some(Cache::new(cache)?));
    }
    Engine::new(&config)
}

fn read(artifact: &OwnedFd) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::from(artifact.try_clone()?);
    let len = usize::try_from(file.metadata()?.len()).map_err(std::io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Splits `package/interface@version`.
fn split_version(name: &str) -> (&str, &str) {
    name.split_once('@').unwrap_or((name, ""))
}

/// Defines every import, or says which one is not admitted.
fn link(
    linker: &mut Linker<State>,
    engine: &Engine,
    component: &component::Component,
) -> Result<(), String> {
    for (full, import) in component.component_type().imports(engine) {
        let (name, version) = split_version(full);
        let of_host = HOST_INTERFACES.contains(&name) && interface_is_served(version);
        let of_wasi = wasi::ADMITTED.iter().find(|admitted| **admitted == name);
        let ComponentItem::ComponentInstance(interface) = import.ty else {
            return Err(format!("it imports {full}, which is no interface"));
        };
        if !of_host && (of_wasi.is_none() || !version.starts_with("0.2.")) {
            return Err(format!("it imports {full}, which plugins are not granted"));
        }
        let mut linker = linker.instance(full).map_err(|error| error.to_string())?;
        for (item, export) in interface.exports(engine) {
            let defined = match (export.ty, of_wasi) {
                (ComponentItem::ComponentFunc(_), Some(interface)) => {
                    wasi::function(&mut linker, interface, item)
                }
                (ComponentItem::ComponentFunc(_), None) => {
                    let interface = name.strip_prefix(PACKAGE).unwrap_or(name);
                    host_function(&mut linker, interface, item)
                }
                (ComponentItem::Resource(_), Some(_)) => match wasi::resource(item) {
                    Some(ty) => linker.resource(item, ty, |_, _| Ok(())),
                    None => return Err(format!("it imports resource {item} of {full}")),
                },
                (ComponentItem::Type(_), _) => Ok(()),
                _ => return Err(format!("it imports {item} of {full}")),
            };
            defined.map_err(|error| format!("{full}.{item}: {error}"))?;
        }
    }
    Ok(())
}

/// Defines a host function by its name: parameters and result go through JSON, so a function that
/// is declared with other types fails when it is called.
fn host_function(
    linker: &mut component::LinkerInstance<'_, State>,
    interface: &str,
    name: &str,
) -> WasmResult<()> {
    let method = format!("{interface}.{}", snake(name));
    linker.func_new(name, move |store, ty, parameters, results| {
        let mut object = Map::new();
        for ((name, _), value) in ty.params().zip(parameters) {
            object.insert(snake(name), to_json(value).map_err(Error::msg)?);
        }
        let State {
            call, functions, ..
        } = store.data();
        let body = Value::Object(object).to_string();
        let answer = functions.call(*call, &method, body.as_bytes());
        let answer: Value = serde_json::from_slice(&answer)
            .map_err(|error| Error::msg(format!("{method}: the host answered badly: {error}")))?;
        if let (Some(slot), Some(ty)) = (results.first_mut(), ty.results().next()) {
            let value = match ty {
                component::Type::Result(_) => &answer,
                _ => answer.get("Ok").unwrap_or(&Value::Null),
            };
            *slot = from_json(value, &ty).map_err(|error| {
                Error::msg(format!("{method} is not what it declared: {error}"))
            })?;
        }
        Ok(())
    })
}

/// Finds every exported function of our package, and the interfaces they belong to.
fn exports(
    engine: &Engine,
    component: &component::Component,
) -> Result<(HashMap<String, ComponentExportIndex>, Vec<String>), Failure> {
    let mut functions = HashMap::new();
    let mut interfaces = BTreeSet::new();
    for (full, export) in component.component_type().exports(engine) {
        let (name, version) = split_version(full);
        let (Some(interface), ComponentItem::ComponentInstance(instance)) =
            (name.strip_prefix(PACKAGE), export.ty)
        else {
            continue;
        };
        if !interface_is_served(version) {
            let message = format!("it exports {full}, this host serves 0.1");
            return Err((Kind::Incompatible, message));
        }
        interfaces.insert(interface.to_owned());
        let outer = component.get_export_index(None, full);
        for (item, _) in instance.exports(engine) {
            let index = outer.and_then(|outer| component.get_export_index(Some(&outer), item));
            if let Some(index) = index {
                functions.insert(format!("{}.{}", snake(interface), snake(item)), index);
            }
        }
    }
    Ok((functions, interfaces.into_iter().collect()))
}
