from pandastack import Sandbox
with Sandbox.create(template="code-interpreter", ttl_seconds=300) as sb:
    result = sb.exec("python3 -c 'print(sum(range(100)))'", timeout_seconds=30)
    print(result.stdout, result.exit_code)
