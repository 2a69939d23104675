# Completion of xe for fish:  xe completion fish | source
#
# Commands come from `xe help --minimal --all`, parameters from `xe help <command>`, values from
# `xe <class>-list --minimal`.

function __xe_list
    # \, is a comma inside a value.
    xe $argv --minimal 2>/dev/null | string replace -a '\\,' \x01 | string split , | string replace -a \x01 ,
end

function __xe_command
    set -l words (commandline -opc)
    for word in $words[2..]
        string match -qr -- '^-|=' $word; and continue
        echo $word
        return
    end
end

function __xe_complete
    set -l command (__xe_command)
    set -l current (commandline -ct)
    if test -z "$command"
        __xe_list help --all
        printf '%s\n' help completion
        return
    end
    switch $command
        case completion
            printf '%s\n' bash zsh fish
            return
        case help
            __xe_list help --all
            return
    end
    if not string match -q -- '*=*' $current
        xe help $command 2>/dev/null | string match -r '(?:reqd|optional) params *: .*' |
            string replace -r '^[^:]*: *' '' | string split , | string trim | string match -rv '^$' |
            string replace -r '^<([a-z]*)-selectors>$' '$1' | string replace -r '([^:-])$' '$1='
        return
    end
    set -l name (string split -m1 = -- $current)[1]
    set -l class (string split -m1 - -- $command)[1]
    switch $name
        case filename file-name
            __fish_complete_path (string replace -r '^[^=]*=' '' -- $current) | string replace -r '^' "$name="
        case uuid
            __xe_list $class-list params=uuid | string replace -r '^' "$name="
        case '*-uuid'
            __xe_list (string replace -r -- '-uuid$' '' $name)-list params=uuid | string replace -r '^' "$name="
        case vm host sr template
            __xe_list $name-list params=name-label | string replace -r '^' "$name="
        case '*'
            __xe_list $class-list params=$name | string replace -r '^' "$name="
    end
end

complete -c xe -f -a '(__xe_complete)'
