//! A process in a guest that holds a value in its memory and counts how often it was asked: whoever
//! asks it again later sees whether its memory was kept, lost or rewound.

/// Its variables are its memory: nothing of them is in a file.
const PROGRAM: &str = "
held=0 asked=0
while true; do
    read -r verb value < /dev/shm/ask
    asked=$((asked + 1))
    if [ \"$verb\" = hold ]; then held=$value; fi
    echo \"$held $asked\" > /dev/shm/answer
done
";

/// A line that starts it.
pub fn start() -> String {
    format!(
        "mkfifo /dev/shm/ask /dev/shm/answer && cat > /root/holder.sh <<'EOF'\n\
         {PROGRAM}EOF\n\
         setsid sh /root/holder.sh >/dev/null 2>&1 </dev/null &"
    )
}

/// A line that has it hold a value; it prints like [`say`].
pub fn hold(value: u64) -> String {
    ask(&format!("hold {value}"))
}

/// A line that has it print the value and how often it was asked, this time included.
pub fn say() -> String {
    ask("say")
}

fn ask(what: &str) -> String {
    format!("timeout 60 sh -c 'echo {what} > /dev/shm/ask; cat /dev/shm/answer'")
}
