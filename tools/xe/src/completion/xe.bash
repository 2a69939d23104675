# Completion of xe for bash:  source <(xe completion bash)
#
# Commands come from `xe help --minimal --all`, parameters from `xe help <command>`, values from
# `xe <class>-list --minimal`. The list of commands is kept for each server as long as the shell lives.

declare -gA _xe_commands

# Splits a --minimal list, in which \, is a comma and \\ a backslash, into lines.
_xe_split() {
    local list=$1 word= i c
    for ((i = 0; i < ${#list}; i++)); do
        c=${list:i:1}
        if [[ $c == "\\" ]]; then
            ((i++))
            word+=${list:i:1}
        elif [[ $c == , ]]; then
            printf '%s\n' "$word"
            word=
        else
            word+=$c
        fi
    done
    [[ -n $word ]] && printf '%s\n' "$word"
}

_xe_list() {
    _xe_split "$("${_xe_call[@]}" "$@" --minimal 2>/dev/null)"
}

# The parameters of a command: name= each, families as name: and name-.
_xe_params() {
    "${_xe_call[@]}" help "$1" 2>/dev/null | sed -n 's/^ *\(reqd\|optional\) params *: *//p' |
        tr ',' '\n' | sed -e 's/^ *//' -e '/^$/d' -e '/^</d' -e 's/[^:-]$/&=/'
}

# The names that select an object, when the command takes them.
_xe_selectors() {
    "${_xe_call[@]}" help "$1" 2>/dev/null | sed -n 's/.*<\([a-z]*\)-selectors>.*/\1=\nuuid=\n--multiple/p'
}

# The class that a command is about: the longest kind that begins it and has a list.
_xe_class() {
    local name=$1
    while [[ $name == *-* ]]; do
        name=${name%-*}
        if [[ ,${_xe_commands[$_xe_key]}, == *,"$name-list",* ]]; then
            printf '%s\n' "$name"
            return
        fi
    done
}

_xe_values() {
    local command=$1 name=$2 class
    class=$(_xe_class "$command")
    case $name in
        filename | file-name | license-file | ca-file) return 1 ;;
        uuid) [[ -n $class ]] && _xe_list "$class-list" params=uuid ;;
        *-uuid) _xe_list "${name%-uuid}-list" params=uuid ;;
        vm | host | sr | template) _xe_list "$name-list" params=name-label ;;
        sr-name-label) _xe_list sr-list params=name-label ;;
        on) _xe_list host-list params=name-label ;;
        class) _xe_split "${_xe_commands[$_xe_key]}" | sed -n 's/-param-list$//p' ;;
        format) printf '%s\n' raw vhd ;;
        mode) printf '%s\n' RO RW ;;
        shared | sharable | read-only | force | progress | bootable | paused) printf '%s\n' true false ;;
        type)
            case $command in
                sr-*) _xe_list sm-list params=type ;;
                vbd-*) printf '%s\n' Disk CD ;;
                vdi-*) printf '%s\n' user system ;;
            esac ;;
        params | param-name)
            [[ -n $class ]] && { "${_xe_call[@]}" help "$class-list" 2>/dev/null |
                sed -n 's/^ *optional params *: *//p' | tr ',' '\n' |
                sed -e 's/^ *//' -e '/:/d' -e '/^params$/d'; [[ $name == params ]] && echo all; } ;;
        *) [[ $command == *-list && -n $class ]] && _xe_list "$class-list" "params=$name" ;;
    esac
    return 0
}

_xe() {
    local line=${COMP_LINE:0:COMP_POINT} cur command word server=
    local -a words _xe_call
    COMPREPLY=()
    # The words as the shell splits them have = and : as words of their own: split at blanks instead.
    read -ra words <<<"$line"
    [[ $line == *[[:blank:]] ]] && words+=("")
    cur=${words[-1]}
    # Ask as the line would be sent: the same server, the same user.
    _xe_call=("${words[0]}")
    local i skip=
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        word=${words[i]}
        case $word in
            -s | -h | -p | -u | -pw | -pwf | --fingerprint | --ca-file | --socket)
                _xe_call+=("$word" "${words[i + 1]}")
                server+=" ${words[i + 1]}"
                ((i++)) ;;
            --nossl) _xe_call+=("$word") ;;
            -*) ;;
            *) [[ -z $command && $word != *=* ]] && command=$word ;;
        esac
    done
    local _xe_key="server$server"
    if [[ -z ${_xe_commands[$_xe_key]} ]]; then
        _xe_commands[$_xe_key]=$("${_xe_call[@]}" help --minimal --all 2>/dev/null)
    fi
    local -a found
    local prefix=
    if [[ -z $command && $cur == -* ]]; then
        mapfile -t found < <(printf '%s\n' -s -p -u -pw -pwf --nossl --fingerprint --ca-file --socket --help)
    elif [[ -z $command ]]; then
        mapfile -t found < <(_xe_split "${_xe_commands[$_xe_key]}"; printf '%s\n' help completion)
    elif [[ $command == completion ]]; then
        found=(bash zsh fish)
    elif [[ $command == help ]]; then
        mapfile -t found < <(_xe_split "${_xe_commands[$_xe_key]}")
    elif [[ $cur == -* ]]; then
        found=(--minimal --multiple --force --trace --debug)
    elif [[ $cur == *=* ]]; then
        local name=${cur%%=*}
        prefix=$name=
        # A list of names: the last one is being typed.
        [[ $name == params && $cur == *,* ]] && prefix=${cur%,*},
        if ! mapfile -t found < <(_xe_values "$command" "$name" || echo "<file>"); then
            return
        fi
        if [[ ${found[0]} == "<file>" ]]; then
            mapfile -t found < <(compgen -f -- "${cur#*=}")
        fi
    else
        mapfile -t found < <(_xe_params "$command"; _xe_selectors "$command")
    fi
    local typed=${cur#"$prefix"} shown
    # What readline takes for the word is what follows the last = or :.
    local before=${cur##*[=:]}
    before=${cur%"$before"}
    for word in "${found[@]}"; do
        [[ $word == "$typed"* ]] || continue
        shown=$prefix$(printf '%q' "$word")
        shown=${shown#"$before"}
        [[ $word == *[=:-] ]] || shown+=" "
        COMPREPLY+=("$shown")
    done
}

complete -o nospace -F _xe xe
