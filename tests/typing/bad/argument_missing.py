from packhorse import Packhorse

app = Packhorse("memory://")


@app.task("send", max_attempts=3)
def send(to: str, subject: str) -> None: ...


send.enqueue("a")  # error: call-arg
