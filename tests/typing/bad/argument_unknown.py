from packhorse import Packhorse

app = Packhorse("memory://")


@app.task
def send(to: str) -> None: ...


send.using(delay=5).enqueue("a", subjekt="b")  # error: call-arg
