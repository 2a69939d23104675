#compdef xe
# Completion of xe for zsh:  source <(xe completion zsh)
#
# Commands come from `xe help --minimal --all`, parameters from `xe help <command>`, values from
# `xe <class>-list --minimal`.

_xe_list() {
    local list
    list=$(xe "$@" --minimal 2>/dev/null)
    # \, is a comma inside a value.
    list=${list//\\,/$'\x01'}
    reply=("${(@)${(@s:,:)list}//$'\x01'/,}")
}

_xe() {
    local -a reply params
    local command name class
    if (( CURRENT == 2 )); then
        _xe_list help --all
        compadd -- $reply help completion
        return
    fi
    command=$words[2]
    case $command in
        completion) compadd -- bash zsh fish; return ;;
        help) _xe_list help --all; compadd -- $reply; return ;;
    esac
    if [[ $PREFIX != *=* ]]; then
        params=(${(f)"$(xe help $command 2>/dev/null | sed -n 's/^ *\(reqd\|optional\) params *: *//p' |
            tr ',' '\n' | sed -e 's/^ *//' -e '/^$/d' -e 's/^<\([a-z]*\)-selectors>$/\1/' -e 's/[^:-]$/&=/')"})
        compadd -S '' -- $params
        compadd -- --minimal --multiple --force --trace
        return
    fi
    name=${PREFIX%%=*}
    class=${command%%-*}
    compset -P '*='
    case $name in
        filename|file-name) _files ;;
        uuid) _xe_list $class-list params=uuid; compadd -- $reply ;;
        *-uuid) _xe_list ${name%-uuid}-list params=uuid; compadd -- $reply ;;
        vm|host|sr|template) _xe_list $name-list params=name-label; compadd -- $reply ;;
        *) _xe_list $class-list params=$name; compadd -- $reply ;;
    esac
}

compdef _xe xe
